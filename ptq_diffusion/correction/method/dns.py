"""DNS and Q-Drift: other coefficients of a step, so that the noise of x_s and the residual add up to the schedule's."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.method.d2dpm import regression_on_q
from ptq_diffusion.correction.method.ptqd import PTQD
from ptq_diffusion.sampler.process import FLOW, Process
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

Rule = Literal["exact", "first_order"]
Bias = Literal["intercept", "total", "off"]


class DNS(Correction[MomentEvidence]):
    """m~ = (q - mu) / (1 + k), and steps whose x_s has the noise of the schedule, the residual of m~ counted as noise.

    A step of DDIM's form is x_s = signal_s x_0 + d epsilon + sigma z. The residual r of m~, of variance v, is an error
    e_m r of epsilon and p_m r of x_0. Both act at eta 0, where no sigma' can absorb it:

    - `exact` is DNS (Deformable Noise Scheduler, ICML 2026): d' with d'^2 + (signal_s p_m + d' e_m)^2 v = d^2, so that
      what is left of epsilon and the residual together are the noise of the schedule. A network that predicts
      epsilon: the gain b = (-c + sqrt(c^2 - (1 + v)(c^2 - d^2))) / (1 + v) with c = sqrt(abar_s (1 - abar_t) / abar_t).
      Where v is too large for a solution it is lowered to the most that has one.
    - `first_order` is Q-Drift (arXiv 2603.18095): the gain of the output times 1 + V (n_t - n_s) / (n_t + n_s), n the
      noise over the signal, of flow matching the noise itself; V = Var(D | q), here without the paper's trimming at 4
      deviations, for which moments are not enough. It is the limit of small steps of the exact rule.

    A step that leaves no noise is as it was. Of flow matching the exact form is ours, by the same equation.

    Args:
        rule: which of the two.
        correlated: divide by 1 + k, as PTQD.
        bias: subtract a bias, as PTQD's option of this name.

    Raises:
        ValueError: an option is none of the above.
    """

    reads = Reads.MOMENTS

    def __init__(self, rule: Rule = "exact", correlated: bool = True, bias: Bias = "intercept") -> None:
        if rule not in ("exact", "first_order"):
            raise ValueError(f"expected rule to be exact or first_order, got {rule!r}")
        self.rule, self._terms = rule, PTQD.of_terms(correlated, bias)
        self._corrects = correlated or bias != "off"

    def check(self, steps: Table) -> None:
        if any(step.direction is None for step in steps):
            raise ValueError(
                "expected a sampler of DDIM's form, whose coefficient of epsilon there is to change, got "
                f"{steps.sampler}; use sampler=ddim (eta=1 is DDPM), euler, euler_ancestral or flow_euler"
            )

    def check_carried(self, steps: Table) -> None:  # noqa: ARG002
        raise ValueError(
            "expected a correction that keeps the sampler's table, dns and q_drift make their own; set noise.steps=null"
        )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:
        return self._terms.additions(steps, shape, patch_size) if self._corrects else Additions()

    def fit_step(self, evidence: MomentEvidence, step: Step) -> StepCorrection:
        correction = self._terms.fit_step(evidence, step)
        assert correction.residual is not None
        residual = correction.residual
        if self.rule == "first_order":
            _, variance = regression_on_q(evidence.whole, step)
            residual = dataclasses.replace(residual, variance=variance)
        return dataclasses.replace(correction, residual=residual, repairs=correction.repairs if self._corrects else ())

    def assembled(self, corrections: Sequence[StepCorrection], steps: Table) -> FittedCorrection:
        change = _with_room if self.rule == "exact" else _with_drift
        table = []
        for step, one in zip(steps, corrections, strict=True):
            assert one.residual is not None
            variance = one.residual.variance
            table.append(change(step, variance, steps.prediction) if step.direction and variance > 0 else step)
        # sigma' is sigma, and belongs to a table that no other has.
        return FittedCorrection(
            steps.with_steps(table), [dataclasses.replace(one, residual=None) for one in corrections]
        )


def _with_room(step: Step, variance: float, prediction: str) -> Step:
    """The step with DNS's coefficient d' of epsilon, for a residual of this variance; see `DNS`, `exact`."""
    assert step.direction is not None
    target = step.direction**2
    *_, on_epsilon = Process(step.signal, step.noise, prediction).coefficients()
    on_x_0 = step.c_0[0] * step.p_m
    # (1 + on_epsilon^2 v) d^2 + 2 on_x_0 on_epsilon v d + on_x_0^2 v - target = 0, solvable up to a variance.
    if (excess := on_x_0**2 - on_epsilon**2 * target) > 0:
        variance = min(variance, target / excess)
    square, half = 1 + on_epsilon**2 * variance, on_x_0 * on_epsilon * variance
    root = max(half**2 - square * (on_x_0**2 * variance - target), 0.0) ** 0.5
    direction = (root - half) / square
    return _with_direction(step, direction)


def _with_drift(step: Step, variance: float, prediction: str) -> Step:
    """The step with Q-Drift's gain of the output, for V = `variance`; see `DNS`, `first_order`."""
    assert step.direction is not None
    if prediction == FLOW:
        growth = variance * (step.noise - step.direction) / (step.noise + step.direction)
        return dataclasses.replace(step, c_m=step.c_m + growth * step.gain)
    *_, on_epsilon = Process(step.signal, step.noise, prediction).coefficients()
    ahead, behind = step.noise * step.c_0[0], step.direction * step.signal
    growth = on_epsilon**2 * variance * (ahead - behind) / (ahead + behind)
    # The gain of epsilon, whatever the network predicts, is the direction less what x_0 holds of it.
    held = step.c_0[0] * step.noise / step.signal
    return _with_direction(step, held + (1 + growth) * (step.direction - held))


def _with_direction(step: Step, direction: float) -> Step:
    assert step.direction is not None
    ratio = direction / step.direction
    return dataclasses.replace(step, c_x=step.c_x * ratio, c_m=step.c_m * ratio, direction=direction)
