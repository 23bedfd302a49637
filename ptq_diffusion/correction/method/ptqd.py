"""PTQD: correlated noise divided out, bias subtracted, the residual absorbed by the sampler's variance."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.correction.step_report import StepReport
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

Bias = Literal["intercept", "total", "off"]
Variance = Literal["pooled", "mean_std", "off"]
Direction = Literal["original", "reduced"]
Centre = Literal["channel", "global"]


class PTQD(Correction[MomentEvidence]):
    """m~ = (q - mu) / (1 + k),  sigma'^2 = max(sigma^2 - b^2 v / (1 + k)^2, 0).

    D = k m + mu + r splits the quantization noise into a part along the float output, a bias per channel and a residual
    of variance v (He et al., NeurIPS 2023, arXiv 2305.10657, sections 4.1 to 4.3). b is the step's gain. With all terms
    off this is no correction; at sigma = 0 the variance term does nothing.

    Args:
        correlated: divide by 1 + k; otherwise k = 0 throughout.
        bias: "intercept" is the paper's mu_c = E[D_c] - k E[m_c]; "total" subtracts E[D_c], as the release does; "off"
            subtracts nothing.
        variance: "pooled" takes v over all samples and pixels, centred per channel; "mean_std" squares the mean of
            per-sample standard deviations, as the release does, which is smaller but for the spread of the residual's
            mean over channels, which it includes; "off" keeps sigma.
        centre: "channel" centres m and D by channel before k is taken, "global" by one mean over all channels, as the
            release does, which mixes differences between channels into k.
        k_clamp: raise negative k to 0, as the release does.
        direction: "original" keeps the step's coefficients; "reduced" recomputes DDIM's direction coefficient with
            sigma', as the release does.

    Raises:
        ValueError: an option is none of the above.
    """

    reads = Reads.MOMENTS

    def __init__(
        self,
        correlated: bool = True,
        bias: Bias = "intercept",
        variance: Variance = "pooled",
        centre: Centre = "channel",
        k_clamp: bool = False,
        direction: Direction = "original",
    ) -> None:
        _require_one_of("bias", bias, ("intercept", "total", "off"))
        _require_one_of("variance", variance, ("pooled", "mean_std", "off"))
        _require_one_of("centre", centre, ("channel", "global"))
        _require_one_of("direction", direction, ("original", "reduced"))
        self.correlated, self.bias, self.variance = correlated, bias, variance
        self.centre, self.k_clamp, self.direction = centre, k_clamp, direction

    @classmethod
    def of_terms(cls, correlated: bool = False, bias: Bias = "off", variance: Variance = "off") -> "PTQD":
        """The paper's method with these terms alone."""
        return cls(correlated, bias, variance, centre="channel", k_clamp=False, direction="original")

    def check(self, steps: Table) -> None:
        if self.direction == "reduced":
            for step in steps:
                step.with_direction_of(step.sigma)

    def check_carried(self, steps: Table) -> None:
        if self.direction == "reduced" and any(step.sigma > 0 for step in steps):
            raise ValueError(
                "expected a correction that keeps the sampler's table, direction=reduced makes its own; set "
                "correction.direction=original or noise.steps=null"
            )

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        return Additions(len(steps) * Affine.macs_of(shape))

    def assembled(self, corrections: Sequence[StepCorrection], steps: Table) -> FittedCorrection:
        if self.direction != "reduced":
            return super().assembled(corrections, steps)
        rows = zip(steps, corrections, strict=True)
        table = steps.with_steps(step.with_direction_of(correction.sigma) for step, correction in rows)
        return FittedCorrection(table, corrections)

    def fit_step(self, evidence: MomentEvidence, step: Step) -> StepCorrection:
        moments = evidence.whole
        k = self._k(moments, step)
        bias = self._bias(moments, k)
        v = self._variance(moments, k)
        residual = Residual(v / (1 + k) ** 2, absorbed=0 if self.variance == "off" else 1, slope=moments.slope)
        repair = Affine(torch.tensor(k, dtype=torch.float64), bias)
        report = self._report(moments, step, k, bias, v, residual)
        return StepCorrection((repair,), residual.sigma(step), report, residual=residual)

    def _report(
        self, moments: StepMoments, step: Step, k: float, bias: Tensor, v: float, residual: Residual
    ) -> StepReport:
        """The report; k and the bias of a term that is off are those that the noise has."""
        mean_residual = moments.mean_noise - k * moments.mean_m - bias
        unexplained = _residual_variance(moments, k) + float(mean_residual.square().mean())
        k = k if self.correlated else moments.k
        bias = moments.mean_noise - k * moments.mean_m if self.bias == "off" else bias
        sigma, budget = residual.sigma(step), residual.budget(step)
        return StepReport.without_diagnostics(step, moments, k, bias, v, unexplained, sigma, budget)

    def _k(self, moments: StepMoments, step: Step) -> float:
        if not self.correlated:
            return 0.0
        _, covariance, variance = moments.pooled() if self.centre == "channel" else moments.pooled_globally()
        if variance <= 0:
            raise ValueError(
                f"expected a float output that varies, at t = {step.t} it is constant, so k is undefined; "
                "measure more samples or use correction=none"
            )
        k = covariance / variance
        if self.k_clamp:
            k = max(k, 0.0)
        if k <= -1:
            raise ValueError(
                f"expected 1 + k > 0, at t = {step.t} k = {k:.3f}: "
                "the quantized output points away from the float one; raise the number of bits"
            )
        return k

    def _bias(self, moments: StepMoments, k: float) -> Tensor:
        if self.bias == "off":
            return torch.zeros_like(moments.mean_noise)
        if self.bias == "total":
            return moments.mean_noise
        return moments.mean_noise - k * moments.mean_m

    def _variance(self, moments: StepMoments, k: float) -> float:
        if self.variance == "mean_std":
            noise_variance, covariance, m_variance = moments.per_sample.unbind(1)
            stds = (noise_variance - 2 * k * covariance + k**2 * m_variance).clamp(min=0).sqrt()
            return float(stds.mean().square())
        return _residual_variance(moments, k)


def _residual_variance(moments: StepMoments, k: float) -> float:
    """Var(D - k m), centred per channel and averaged over channels."""
    noise_variance, covariance, m_variance = moments.pooled()
    return max(noise_variance - 2 * k * covariance + k**2 * m_variance, 0.0)


def _require_one_of(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ValueError(f"expected {name} to be one of {', '.join(options)}, got {value!r}")
