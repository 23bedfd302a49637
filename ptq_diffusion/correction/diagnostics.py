"""Diagnostics of the residual: held-out R^2, reliability of k, skewness, kurtosis, spatial and step correlation."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ptq_diffusion.correction.contract import Correction
from ptq_diffusion.correction.evidence import MomentEvidence, PairedBatch, PathEvidence
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.fitting import fit_moments
from ptq_diffusion.correction.noise.higher_moments import HigherMoments, powers, reliability, terms
from ptq_diffusion.correction.noise.statistics import NoiseStatistics
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


def fit_diagnosed(
    correction: Correction[MomentEvidence], statistics: NoiseStatistics, steps: Table
) -> FittedCorrection:
    """Fit a correction to moments and complete its report: the coefficients are those of `fit_moments`.

    A correction whose repair is not affine is reported without diagnostics: its residual is no function of the moments.

    Raises:
        ValueError: what `fit_moments` refuses.
    """
    fitted = fit_moments(correction, statistics, steps)
    halves: Sequence[StepCorrection | None]
    try:
        halves = fit_moments(correction, NoiseStatistics(statistics.fingerprint, statistics.even), steps).corrections
    except ValueError:  # Half of the samples does not determine it, or it holds half of them out itself.
        halves = [None] * len(fitted.corrections)
    corrections, before = [], None
    for whole, half, higher in zip(fitted.corrections, halves, statistics.higher, strict=True):
        k_mu, k_mu_half = _affine(whole.repairs, higher), _affine(half.repairs, higher) if half else None
        diagnostics: dict[str, float | None] = {"reliability": reliability(higher.powers)}
        if k_mu:
            diagnostics |= _shape(higher, k_mu[0], before)
        if k_mu_half:
            diagnostics["r2_held_out"] = _r2_of_odd(higher, *k_mu_half, correction.residual_scale(k_mu_half[0]))
        corrections.append(_reported(whole, diagnostics))
        before = (k_mu[0], higher.deviation(k_mu[0])) if k_mu else None
    return dataclasses.replace(fitted, corrections=corrections)


def _affine(repairs: Sequence[Repair], higher: HigherMoments) -> tuple[float, Tensor] | None:
    """The pair (k, mu) of m~ = (q - mu) / (1 + k); None of another repair."""
    if not repairs:
        return 0.0, torch.zeros(higher.powers.shape[1], dtype=torch.float64)
    if len(repairs) == 1 and isinstance(repairs[0], Affine):
        return float(repairs[0].k), repairs[0].bias.double()
    return None


def _r2_of_odd(higher: HigherMoments, k: float, mu: Tensor, scale: float) -> float | None:
    odd = slice(1, None, 2)
    remainder, power = higher.moment(2, k, mu, odd) * scale**2, higher.moment(2, 0.0, torch.zeros_like(mu), odd)
    return _r2(remainder, power)


def _r2(remainder: float, power: float) -> float | None:
    """1 - remainder / power; None without samples, of which the power is NaN."""
    if power != power:
        return None
    return 1 - remainder / power if power > 0 else 1.0


def _shape(higher: HigherMoments, k: float, before: tuple[float, float | None] | None) -> dict[str, float | None]:
    """The shape of r = D - k m, centred, by the report's names; `before` is k and r's deviation one step earlier."""
    kurtosis = higher.standardized(4, k)
    return {
        "skewness": higher.standardized(3, k),
        "kurtosis": None if kurtosis is None else kurtosis - 3,
        "neighbour_correlation": higher.neighbour_correlation(k),
        "step_correlation": higher.step_correlation(k, *before) if before else None,
    }


def _reported(correction: StepCorrection, diagnostics: dict[str, Any]) -> StepCorrection:
    return dataclasses.replace(correction, report=dataclasses.replace(correction.report, **diagnostics))


def fit_step_diagnosed(
    correction: Correction[PathEvidence],
    evidence: PathEvidence,
    step: Step,
    before: tuple[Sequence[PairedBatch], StepCorrection] | None,
) -> StepCorrection:
    """Fit a step of a correction along a path and complete its report, which changes no coefficient.

    Args:
        correction: the method.
        evidence: the images at this step; the report is of those with m.
        step: the sampler's row.
        before: the images with m at the step before, and the correction of that step; None at the first.

    Raises:
        ValueError: what `correction.fit_step` refuses.
    """
    fitted, images = correction.fit_step(evidence, step), evidence.paired
    diagnostics: dict[str, float | None] = {
        "reliability": reliability(reduce(Tensor.add, (powers(terms(b.m, b.q), b.first) for b in images))),
    }
    if fitted.report.r2_held_out is None:
        diagnostics["r2_held_out"] = _r2_held_out(correction, evidence, step)
    residual = reduce(HigherMoments.merge, (_residual(batch, fitted, then) for batch, then in _beside(images, before)))
    deviation_before = before[1].report.variance ** 0.5 if before else None
    return _reported(fitted, diagnostics | _shape(residual, 0.0, (0.0, deviation_before)))


def _beside(
    batches: Sequence[PairedBatch], before: tuple[Sequence[PairedBatch], StepCorrection] | None
) -> Iterator[tuple[PairedBatch, tuple[PairedBatch, StepCorrection] | None]]:
    """Every batch, with the batch of the same images and the correction at the step before; None at the first step."""
    for place, batch in enumerate(batches):
        yield batch, (before[0][place], before[1]) if before else None


def _residual(
    batch: PairedBatch, correction: StepCorrection, before: tuple[PairedBatch, StepCorrection] | None
) -> HigherMoments:
    """The higher moments of a batch's residual, m~ - m, beside its residual at the step before."""
    then = terms(before[0].m, before[0].repaired(before[1].repairs)) if before else None
    return HigherMoments.of(terms(batch.m, batch.repaired(correction.repairs)), then, batch.first)


def _r2_held_out(correction: Correction[PathEvidence], evidence: PathEvidence, step: Step) -> float | None:
    """R^2 on the images of odd index of a fit on those of even index; None where so few images do not determine it."""
    even, odd = evidence.half(0), evidence.half(1).paired
    try:
        repairs = correction.fit_step(even, step).repairs
    except ValueError:
        return None
    remainder = sum(float((b.repaired(repairs) - b.m).double().square().sum()) for b in odd)
    power = sum(float((b.q - b.m).double().square().sum()) for b in odd)
    return _r2(remainder, power) if len(odd) else None
