"""What is reported of the residual beside its variance: is it explained anew, normal, white and fresh?"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ptq_diffusion.correction.contract import AskedBatch, Batch, MomentCorrection, PathCorrection, SomeBatch
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.noise.higher_moments import NoiseDetail, powers, reliability, terms
from ptq_diffusion.correction.noise.statistics import NoiseStatistics
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


def fit_diagnosed(correction: MomentCorrection, statistics: NoiseStatistics, steps: Table) -> FittedCorrection:
    """A correction from moments, its report complete: the coefficients are those of `correction.fit`.

    A correction whose repair is not affine is reported without diagnostics: its residual is no function of the moments.

    Raises:
        ValueError: what `correction.fit` refuses.
    """
    fitted = correction.fit(statistics, steps)
    try:
        halves: Sequence[StepCorrection | None] = correction.fit(
            NoiseStatistics(statistics.fingerprint, statistics.even), steps
        ).found
    except ValueError:  # Half of the samples does not determine it, or it holds half of them out itself.
        halves = [None] * len(fitted.found)
    found, before = [], None
    for own, half, detail in zip(fitted.found, halves, statistics.details, strict=True):
        k_mu, k_mu_half = _affine(own.repairs, detail), _affine(half.repairs, detail) if half else None
        known: dict[str, float | None] = {"reliability": reliability(detail.powers)}
        if k_mu:
            known |= _shape(detail, k_mu[0], before)
        if k_mu_half:
            known["r2_held_out"] = _r2_of_odd(detail, *k_mu_half, correction.residual_scale(k_mu_half[0]))
        found.append(_reported(own, known))
        before = (k_mu[0], detail.deviation(k_mu[0])) if k_mu else None
    return dataclasses.replace(fitted, found=found)


def _affine(repairs: Sequence[Repair], detail: NoiseDetail) -> tuple[float, Tensor] | None:
    """k and mu of m~ = (q - mu) / (1 + k); None of another repair."""
    if not repairs:
        return 0.0, torch.zeros(detail.powers.shape[1], dtype=torch.float64)
    if len(repairs) == 1 and isinstance(repairs[0], Affine):
        return float(repairs[0].k), repairs[0].bias.double()
    return None


def _r2_of_odd(detail: NoiseDetail, k: float, mu: Tensor, scale: float) -> float | None:
    odd = slice(1, None, 2)
    left, power = detail.moment(2, k, mu, odd) * scale**2, detail.moment(2, 0.0, torch.zeros_like(mu), odd)
    return _r2(left, power)


def _r2(left: float, power: float) -> float | None:
    """None where there are no samples, which is 0 / 0 already."""
    if power != power:
        return None
    return 1 - left / power if power > 0 else 1.0


def _shape(detail: NoiseDetail, k: float, before: tuple[float, float | None] | None) -> dict[str, float | None]:
    """The shape of r = D - k m, centred, by the report's names; `before` is k and r's deviation one step earlier."""
    kurtosis = detail.standardized(4, k)
    return {
        "skewness": detail.standardized(3, k),
        "kurtosis": None if kurtosis is None else kurtosis - 3,
        "neighbour_correlation": detail.neighbour_correlation(k),
        "step_correlation": detail.step_correlation(k, *before) if before else None,
    }


def _reported(found: StepCorrection, known: dict[str, Any]) -> StepCorrection:
    return dataclasses.replace(found, report=dataclasses.replace(found.report, **known))


def fit_step_diagnosed(
    correction: PathCorrection,
    asked: Sequence[AskedBatch],
    step: Step,
    before: tuple[Sequence[AskedBatch], StepCorrection] | None,
    others: Sequence[Batch] = (),
) -> StepCorrection:
    """A step of a correction along a path, its report complete: the coefficients are those of `correction.fit_step`.

    Args:
        correction: the method.
        asked: the first images at this step, which the report is of.
        step: the sampler's row.
        before: the same images at the step before, and what was done there; None at the first.
        others: all further images at this step.

    Raises:
        ValueError: what `correction.fit_step` refuses.
    """
    found = correction.fit_step(asked, step, others)
    known: dict[str, float | None] = {
        "reliability": reliability(reduce(Tensor.add, (powers(terms(b.m, b.q), b.first) for b in asked))),
    }
    if found.report.r2_held_out is None:
        known["r2_held_out"] = _r2_held_out(correction, asked, step, others)
    left = reduce(NoiseDetail.merge, (_left(batch, found, then) for batch, then in _beside(asked, before)))
    deviation_before = before[1].report.variance ** 0.5 if before else None
    return _reported(found, known | _shape(left, 0.0, (0.0, deviation_before)))


def _beside(
    batches: Sequence[AskedBatch], before: tuple[Sequence[AskedBatch], StepCorrection] | None
) -> Iterator[tuple[AskedBatch, tuple[AskedBatch, StepCorrection] | None]]:
    """Every batch with itself at the step before, one pair at a time."""
    for place, batch in enumerate(batches):
        yield batch, (before[0][place], before[1]) if before else None


def _left(batch: AskedBatch, found: StepCorrection, before: tuple[AskedBatch, StepCorrection] | None) -> NoiseDetail:
    """What is left of a batch's noise, m~ - m, beside what was left of it at the step before."""
    then = terms(before[0].m, before[0].repaired(before[1].repairs)) if before else None
    return NoiseDetail.of(terms(batch.m, batch.repaired(found.repairs)), then, batch.first)


class Half(Sequence[SomeBatch]):
    """The images of even (0) or odd (1) index, batches that have none left out."""

    def __init__(self, batches: Sequence[SomeBatch], parity: int) -> None:
        self._batches, self._parity = batches, parity
        self._places = [place for place, batch in enumerate(batches) if len(batch.half(parity).q)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> SomeBatch:  # type: ignore[override]
        return self._batches[self._places[place]].half(self._parity)


def _r2_held_out(
    correction: PathCorrection, asked: Sequence[AskedBatch], step: Step, others: Sequence[Batch]
) -> float | None:
    """Of a fit on the images of even index, on those of odd index; None where so few images do not determine it."""
    even, odd = Half(asked, 0), Half(asked, 1)
    try:
        repairs = correction.fit_step(even, step, Half(others, 0)).repairs
    except ValueError:
        return None
    left = sum(float((b.repaired(repairs) - b.m).double().square().sum()) for b in odd)
    power = sum(float((b.q - b.m).double().square().sum()) for b in odd)
    return _r2(left, power) if len(odd) else None
