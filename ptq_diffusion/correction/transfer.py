"""A correction fitted on one table, carried onto another of the same sampler: its coefficients follow log-SNR."""

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Sequence

import torch

from ptq_diffusion.correction.fitted import KINDS, FittedCorrection, StepCorrection, absorbing
from ptq_diffusion.correction.repair.filter import FilterInt8
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.network import Rescaling
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


def interpolated(fitted: FittedCorrection, fit_steps: Table, steps: Table) -> FittedCorrection:
    """A fitted correction at the steps of another table.

    Statistics of the noise belong to a network at a time and are smooth in log-SNR; b and sigma belong to a table. So
    k, mu, kernels, matrices, layers' gains, offsets and input grids, and the residual are interpolated linearly in
    log-SNR, held beyond the first and the last time, and sigma' follows from them with the new b and sigma. A row that
    both tables share is taken as it is, bit for bit. The network must be the one that was fitted for. A correction
    along a path has seen the states that its own table led to; those of the new one are trusted to be like them.

    Args:
        fitted: the correction.
        fit_steps: the sampler's table that it was fitted on.
        steps: of the same sampler with another number of steps.

    Raises:
        ValueError: the correction made a table of its own or estimates on the way, the tables are of another sampler,
            prediction or clip or only one of them adds noise, the new one reaches beyond the fitted one, neighbouring
            steps are repaired in different orders, or sigma' belongs to the fitted table alone.
    """
    require_reach(fit_steps, steps)
    if list(fitted.steps) != list(fit_steps):
        raise ValueError(
            "expected a correction that samples with the sampler's table, got one that made a table of its own, as "
            "stepbaq or direction=reduced do; fit on the sampler's own table: noise.steps=null"
        )
    corrections = []
    for step in steps:
        low, high, weight = _place(fitted.steps, step)
        if low == high and dataclasses.replace(step, i=low) == fitted.steps[low]:
            corrections.append(fitted.corrections[low])
        elif fitted.evaluations:
            raise ValueError(
                "expected a correction with coefficients to carry onto another table, got one that estimates on the "
                "way; set noise.steps=null"
            )
        else:
            corrections.append(_between(fitted.corrections[low], fitted.corrections[high], weight, step))
    return FittedCorrection(steps, absorbing(corrections, steps))


def require_reach(fit_steps: Table, steps: Table) -> None:
    """Refuse a table that a correction fitted on another cannot serve.

    Raises:
        ValueError: it is of another sampler, prediction or clip, or has times beyond the fitted ones by more than the
            distance to their next.
    """
    times = [step.t for step in fit_steps]
    first = times[0] + (times[0] - times[:2][-1])
    last = times[-1] - (times[-2:][0] - times[-1])
    if beyond := [step.t for step in steps if not last <= step.t <= first]:
        raise ValueError(
            f"expected times within {last:g} to {first:g}, one spacing beyond those that were fitted, got "
            f"{', '.join(f'{t:g}' for t in beyond)}; raise noise.steps"
        )
    ours, theirs = _family(fit_steps), _family(steps)
    if differing := [name for name in ours if ours[name] != theirs[name]]:
        raise ValueError(
            "expected a table that differs from the fitted one in its steps only, got another "
            + ", ".join(f"{name} ({theirs[name]} in place of {ours[name]})" for name in differing)
            + "; fit on the sampler's own table: noise.steps=null"
        )


def _family(table: Table) -> dict[str, object]:
    """Properties that two tables must share, by name."""
    return {
        "clip": table.clip,
        "prediction": table.prediction,
        "sampler": table.sampler,
        "scale of x_T": table.init_scale,
        "noise of the sampler": any(step.sigma > 0 for step in table),
        "learned variance": any(step.is_learned for step in table),
    }


def _place(fit_steps: Table, step: Step) -> tuple[int, int, float]:
    """(low, high, weight): the rows around a step in log-SNR and the weight of `high`; low = high at a row or end."""
    at, here = [_log_snr(row) for row in fit_steps], _log_snr(step)
    high = min(bisect_left(at, here), len(fit_steps) - 1)
    low = high - 1 if high > 0 and here < at[high] else high
    if low < high and at[low] == -math.inf:
        return low, high, 1.0  # Infinitely far from a step without a signal, as t = T of flow matching.
    return low, high, (here - at[low]) / (at[high] - at[low]) if low < high else 0.0


def _log_snr(step: Step) -> float:
    return math.log(step.snr) if step.snr > 0 else -math.inf


def _between(a: StepCorrection, b: StepCorrection, weight: float, step: Step) -> StepCorrection:
    if a.residual is None or b.residual is None:
        raise ValueError(
            "expected sigma' to be sigma or to absorb the residual, got one that belongs to the fitted table, as with "
            "variance=rule; choose variance=original, or fit on the sampler's own table: noise.steps=null"
        )
    residual = a.residual.lerp(b.residual, weight)
    names = [field.name for field in dataclasses.fields(StepReport)]
    mixed = {name: _mixed(getattr(a.report, name), getattr(b.report, name), weight) for name in names}
    between = StepReport(**mixed)  # type: ignore[arg-type]
    sigma = residual.sigma(step)
    report = dataclasses.replace(
        between,
        t=step.t,
        sigma=step.sigma,
        sigma_used=sigma,
        budget=residual.budget(step),
        snr_f=step.snr,
        step_correlation=None,
    )
    repairs = tuple(_mixed_repair(one, two, weight) for one, two in _aligned(a, b, step))
    return StepCorrection(repairs, sigma, report, rescalings=_mixed_rescalings(a, b, weight), residual=residual)


def _mixed_rescalings(a: StepCorrection, b: StepCorrection, weight: float) -> dict[str, Rescaling]:
    """Rescalings of every layer that one of the steps rescales: the other has its grid and else leaves it as it is."""
    mixed = {}
    for name in dict.fromkeys((*a.rescalings, *b.rescalings)):
        known = a.rescalings.get(name) or b.rescalings[name]
        one, two = (correction.rescalings.get(name, known.identity_like()) for correction in (a, b))
        mixed[name] = one.lerp(two, weight)
    return mixed


def _aligned(a: StepCorrection, b: StepCorrection, step: Step) -> Sequence[tuple[Repair, Repair]]:
    """The repairs of both, with one that does nothing in the place of each that only the other step has."""
    of_a, of_b = ({repair.kind: repair for repair in correction.repairs} for correction in (a, b))
    known = of_a | of_b
    kinds = [kind for kind in KINDS if kind in known]
    for correction, by_kind in ((a, of_a), (b, of_b)):
        if [repair.kind for repair in correction.repairs] != [kind for kind in kinds if kind in by_kind]:
            raise ValueError(
                f"expected steps that are repaired in one order around t = {step.t:g}, got {_kinds(a)} and "
                f"{_kinds(b)}; fit on the sampler's own table: noise.steps=null"
            )
    identity = {kind: known[kind].identity_like() for kind in kinds}
    return [(of_a.get(kind, identity[kind]), of_b.get(kind, identity[kind])) for kind in kinds]


def _mixed(a: float | None, b: float | None, weight: float) -> float | None:
    if a is None or b is None:
        return None
    return a if a == b else (1 - weight) * a + weight * b


def _mixed_repair(a: Repair, b: Repair, weight: float) -> Repair:
    if isinstance(a, FilterInt8):
        raise ValueError(
            "expected coefficients between which there are others, got a readout in 8 bits; set "
            "correction.readout_bits=32, or fit on the sampler's own table: noise.steps=null"
        )
    of_b = b.tensors()
    return type(a)(**{name: torch.lerp(tensor, of_b[name], weight) for name, tensor in a.tensors().items()})


def _kinds(correction: StepCorrection) -> str:
    return ", ".join(repair.kind for repair in correction.repairs) or "nothing"
