"""D2-DPM: the quantization noise predicted from the quantized output, as jointly Gaussian variables."""

from typing import Literal

import torch

from ptq_diffusion.correction.contract import MomentCorrection
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.noise.statistics import NoiseStatistics
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

Variant = Literal["deterministic", "stochastic"]


class D2DPM(MomentCorrection):
    """m~ = q - E[D|q] with E[D|q] = E[D] + beta (q - E[q]), beta = Cov(D, q) / Var q (Zeng et al., AAAI 2025).

    Statistics are pooled over pixels and centred per channel. What q leaves of the noise has the variance
    V = Var D - beta Cov(D, q). PTQD regresses D on the unknown m and divides; this regresses on what is observed.

    Args:
        variant: "deterministic" takes sigma'^2 = max(sigma^2 - b^2 V, 0), as published; "stochastic" subtracts a sample
            of D given q instead of its mean. Where the step is affine (no clipping) that sample and the sampler's noise
            add up to one Gaussian, so it is drawn as sigma'^2 = sigma^2 + b^2 V, at eta = 0 too.

    Raises:
        ValueError: the variant is neither.
    """

    def __init__(self, variant: Variant) -> None:
        if variant not in ("deterministic", "stochastic"):
            raise ValueError(f"expected variant to be deterministic or stochastic, got {variant!r}")
        self.variant = variant

    def fit(self, statistics: NoiseStatistics, steps: Table) -> FittedCorrection:
        statistics.require_table(steps)
        found = [self._fit_step(moments, step) for moments, step in zip(statistics.steps, steps, strict=True)]
        return FittedCorrection(steps, found)

    def residual_scale(self, k: float) -> float:
        """D - E[D|q] = (D - k m - mu) / (1 + k)."""
        return 1 / (1 + k)

    def _fit_step(self, moments: StepMoments, step: Step) -> StepCorrection:
        beta, left = _regression_on_q(moments, step)
        # (q - mu) / (1 + k) with 1 / (1 + k) = 1 - beta.
        k = beta / (1 - beta)
        bias = (moments.mean_noise - beta * (moments.mean_m + moments.mean_noise)) / (1 - beta)
        residual = Residual(left, absorbed=-1 if self.variant == "stochastic" else 1)
        power = moments.noise_power
        report = StepReport(
            t=step.t,
            k=k,
            bias=float(bias.square().mean().sqrt()),
            variance=left,
            sigma=step.sigma,
            sigma_used=residual.sigma(step),
            r2=1 - left / power if power > 0 else 1.0,
            budget=residual.budget(step),
            snr_q=moments.snr,
            snr_f=step.snr,
        )
        repair = Affine(torch.tensor(k, dtype=torch.float64), bias)
        return StepCorrection((repair,), residual.sigma(step), report, residual=residual)


def _regression_on_q(moments: StepMoments, step: Step) -> tuple[float, float]:
    """beta and V."""
    of_noise, across, of_m = moments.pooled()
    if of_m <= 0:
        raise ValueError(
            f"expected a float output that varies, at t = {step.t} it is constant, so nothing tells it from noise; "
            "measure more samples or use correction=none"
        )
    of_q, with_q = of_m + 2 * across + of_noise, of_noise + across
    if of_q <= 0:
        raise ValueError(
            f"expected a quantized output that varies, at t = {step.t} it is constant; raise the number of bits"
        )
    beta = with_q / of_q
    if beta >= 1:
        raise ValueError(
            f"expected beta < 1, at t = {step.t} it is {beta:.3f}: the quantized output holds no signal; "
            "raise the number of bits"
        )
    return beta, max(of_noise - beta * with_q, 0.0)
