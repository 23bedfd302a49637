"""StepbaQ: an error of the state as a step back to a noisier time, from which the next step starts."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.method.ptqd import PTQD
from ptq_diffusion.sampler.form import step_from
from ptq_diffusion.sampler.process import FLOW, Process
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class StepbaQ(Correction[MomentEvidence]):
    """x_t with an error of variance s^2 is, divided by sqrt(1 + s^2), a state at tau, abar_tau = abar_t / (1 + s^2).

    Chen et al., StepbaQ, NeurIPS 2024, equations 5 to 8. At every row but the first the state is rescaled, the network
    is told tau, and the sampler steps from tau. Row i leaves s^2 = b_i^2 v_i, with b_i its gain from where it starts
    and v_i the pooled variance of D about its mean. All of it is a table: row i starts from tau_i, and its coefficients
    are multiplied by sqrt(abar_tau / abar_t) of row i + 1. At eta = 0 it acts as well.

    As in the paper, a stochastic step keeps sigma and the coefficient of epsilon, so that it ends at its own noise
    level (appendix C). Unlike it, tau is no whole number, so that errors need not add up until they reach the next one,
    and s^2 comes from noise along float sampling, not along the corrected path.

    Args:
        bias: subtract the mean of D from the output, per channel, and with it the mean of the error from the state.
    """

    reads = Reads.MOMENTS

    def __init__(self, bias: bool = True) -> None:
        self.bias = bias

    def check(self, steps: Table) -> None:
        if steps.prediction == FLOW:
            raise ValueError(
                "expected a process that preserves variance, on which an error of the state is a step back, got one of "
                "flow matching; leave stepbaq out, such as for correction=bias"
            )
        for step in steps:
            step_from(step, step.t, Process(step.signal, step.noise, steps.prediction))
        if steps and steps[0].abar_t == 0:
            raise ValueError(
                "expected abar_t > 0 at every time, got 0 at the first, from which no time before it can be told; "
                "set +sampler.scheduler.rescale_betas_zero_snr=false"
            )

    def check_carried(self, steps: Table) -> None:  # noqa: ARG002
        raise ValueError(
            "expected a correction that keeps the sampler's table, stepbaq makes its own; set noise.steps=null"
        )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:
        return PTQD.of_terms().additions(steps, shape, patch_size)

    def fit_step(self, evidence: MomentEvidence, step: Step) -> StepCorrection:
        return PTQD.of_terms(bias="total" if self.bias else "off").fit_step(evidence, step)

    def assembled(self, corrections: Sequence[StepCorrection], steps: Table) -> FittedCorrection:
        table: list[Step] = []
        variance = 0.0
        for step, correction in zip(steps, corrections, strict=True):
            shrink = (1 + variance) ** -0.5
            if table:
                table[-1] = _scaled(table[-1], shrink)
            if variance > 0:
                abar = step.abar_t * shrink**2
                step = step_from(step, time_of(abar, steps), Process.of_abar(abar, steps.prediction))
            table.append(step)
            variance = step.gain**2 * correction.report.variance
        return FittedCorrection(
            steps.with_steps(table),
            [_with_sigma(correction, step.sigma) for correction, step in zip(corrections, table, strict=True)],
        )


def time_of(abar: float, steps: Table) -> float:
    """The time between those of a table at which the cumulative alpha is `abar`.

    -log abar_t / (t + 1), the mean over the times up to t of -log(1 - beta), is interpolated linearly in t. It is
    nearly linear for the schedules in use, where log-SNR is not: at 20 steps of a linear one this is off by 0.1 of a
    time, log-SNR by 17.

    Raises:
        ValueError: the table does not reach so far.
    """
    depth = -math.log(abar)
    for noisier, cleaner in itertools.pairwise(steps):
        if noisier.abar_t <= abar <= cleaner.abar_t:
            start, end = cleaner.t + 1, noisier.t + 1
            at_start = -math.log(cleaner.abar_t) / start
            slope = (-math.log(noisier.abar_t) / end - at_start) / (end - start)
            # depth = (at_start + slope (u - start)) u with u = t + 1.
            constant = at_start - slope * start
            return 2 * depth / (constant + (constant**2 + 4 * slope * depth) ** 0.5) - 1
    raise ValueError(
        f"expected an error that is less than a step back to the first time, abar = {steps[0].abar_t:.3g}, got one "
        f"that leaves {abar:.3g}: the quantized output holds too little signal; raise the number of bits"
    )


def _with_sigma(correction: StepCorrection, sigma: float) -> StepCorrection:
    """The correction with the sigma of a table of its own, which no other table can follow."""
    report = dataclasses.replace(correction.report, sigma_used=sigma)
    return dataclasses.replace(correction, sigma=sigma, report=report, residual=None)


def _scaled(step: Step, by: float) -> Step:
    """The row whose next state is multiplied."""
    direction = None if step.direction is None else step.direction * by
    c_0 = tuple(c * by for c in step.c_0)
    return dataclasses.replace(
        step, c_x=step.c_x * by, c_m=step.c_m * by, c_0=c_0, sigma=step.sigma * by, direction=direction
    )
