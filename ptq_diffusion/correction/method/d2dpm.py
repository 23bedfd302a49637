"""D2-DPM: the quantization noise predicted from the quantized output, as jointly Gaussian variables."""

from typing import Literal

import torch

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

Variant = Literal["deterministic", "stochastic"]


class D2DPM(Correction[MomentEvidence]):
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

    reads = Reads.MOMENTS

    def __init__(self, variant: Variant = "deterministic") -> None:
        if variant not in ("deterministic", "stochastic"):
            raise ValueError(f"expected variant to be deterministic or stochastic, got {variant!r}")
        self.variant = variant

    def check(self, steps: Table) -> None:
        if self.variant == "stochastic" and any(any(step.c_0[1:]) for step in steps):
            raise ValueError(
                "expected a one-step sampler with the stochastic D2-DPM, whose sample of the noise a later step would "
                "have to read again, got a multistep one; set sampler.order=1 or correction=d2dpm"
            )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        return Additions(len(steps) * Affine.macs_of(shape))

    def residual_scale(self, k: float) -> float:
        """D - E[D|q] = (D - k m - mu) / (1 + k)."""
        return 1 / (1 + k)

    def fit_step(self, evidence: MomentEvidence, step: Step) -> StepCorrection:
        moments = evidence.whole
        beta, variance = regression_on_q(moments, step)
        # (q - mu) / (1 + k) with 1 / (1 + k) = 1 - beta.
        k = beta / (1 - beta)
        bias = (moments.mean_noise - beta * (moments.mean_m + moments.mean_noise)) / (1 - beta)
        residual = Residual(variance, absorbed=-1 if self.variant == "stochastic" else 1, slope=moments.slope)
        sigma, budget = residual.sigma(step), residual.budget(step)
        report = StepReport.without_diagnostics(step, moments, k, bias, variance, variance, sigma, budget)
        repair = Affine(torch.tensor(k, dtype=torch.float64), bias)
        return StepCorrection((repair,), sigma, report, residual=residual)


def regression_on_q(moments: StepMoments, step: Step) -> tuple[float, float]:
    """The pair (beta, V) of D = E[D] + beta (q - E[q]) and a rest of variance V, pooled.

    Raises:
        ValueError: an output does not vary, or q holds no signal.
    """
    noise_variance, covariance, m_variance = moments.pooled()
    if m_variance <= 0:
        raise ValueError(
            f"expected a float output that varies, at t = {step.t} it is constant, so nothing tells it from noise; "
            "measure more samples or use correction=none"
        )
    q_variance, with_q = m_variance + 2 * covariance + noise_variance, noise_variance + covariance
    if q_variance <= 0:
        raise ValueError(
            f"expected a quantized output that varies, at t = {step.t} it is constant; raise the number of bits"
        )
    beta = with_q / q_variance
    if beta >= 1:
        raise ValueError(
            f"expected beta < 1, at t = {step.t} it is {beta:.3f}: the quantized output holds no signal; "
            "raise the number of bits"
        )
    return beta, max(noise_variance - beta * with_q, 0.0)
