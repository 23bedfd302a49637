"""PTQD, each term used only at the steps where held-out images say that it helps."""

import math

import torch
from torch import Tensor

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.evidence import MomentEvidence
from ptq_diffusion.correction.fitted import StepCorrection
from ptq_diffusion.correction.method.ptqd import PTQD
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.repair.affine import Affine
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class GatedPTQD(Correction[MomentEvidence]):
    """m~ = (q - mu) / (1 + k) and sigma' as PTQD has them, or k = 0, mu = 0 or sigma' = sigma at a step.

    k and mu are fitted on the images of even index and judged on those of odd index, and the other way round. Of the
    four combinations the one with the least held-out E|m~ - m|^2 is used, the one with fewer terms where two are level.
    The variance schedule is used where on held-out images it brings the variance of the next state nearer to float
    sampling's, |Var F(m~) + sigma'^2 - Var F(m) - sigma^2| with F the step's mean without its clip; a step that reads
    earlier predictions of x_0, whose variance depends on the step before too, keeps sigma. What is used is fitted anew
    on all images. Where PTQD's k cannot be used, as where 1 + k <= 0, it is not.

    Raises:
        ValueError: the statistics do not tell the halves apart, or one of them is empty.
    """

    reads = Reads.MOMENTS

    def check_images(self, images: int, channels: int) -> None:  # noqa: ARG002
        if images < 2:
            raise ValueError(f"expected at least 2 images to judge the terms on, got {images}; raise noise.images")

    def additions(self, steps: Table, shape: tuple[int, ...], patch_size: int) -> Additions:  # noqa: ARG002
        return Additions(len(steps) * Affine.macs_of(shape))

    def fit_step(self, evidence: MomentEvidence, step: Step) -> StepCorrection:
        whole, even = evidence.whole, evidence.even
        if even is None:
            raise ValueError(
                "expected statistics that tell images of even and odd index apart, got some without; measure them again"
            )
        odd = whole.without(even)
        if not (odd.joint.count and even.joint.count):
            raise ValueError("expected at least 2 images to judge the terms on, got 1; raise noise.images")
        halves = (even, odd), (odd, even)

        def error(terms: tuple[bool, bool]) -> float:
            try:
                _fitted(whole, step, *terms, False)
                return sum(_error(judging, _fitted(fitting, step, *terms, False)) for fitting, judging in halves)
            except ValueError:  # k is undefined, or 1 + k is not positive
                return math.inf

        def miss(terms: tuple[bool, bool], variance: bool) -> float:
            return sum(
                _variance_gap(judging, _fitted(fitting, step, *terms, variance), step) for fitting, judging in halves
            )

        terms = min(TERMS, key=error)  # the first of those that are level
        variance = not any(step.c_0[1:]) and miss(terms, True) < miss(terms, False)
        return _fitted(whole, step, *terms, variance)


TERMS = ((False, False), (True, False), (False, True), (True, True))
"""k and the bias, used or not, the fewest terms first."""


def _fitted(moments: StepMoments, step: Step, correlated: bool, bias: bool, variance: bool) -> StepCorrection:
    ptqd = PTQD.of_terms(correlated, "intercept" if bias else "off", "pooled" if variance else "off")
    return ptqd.fit_step(MomentEvidence(moments), step)


def _affine(correction: StepCorrection) -> tuple[float, Tensor]:
    """The pair (k, mu)."""
    (repair,) = correction.repairs
    assert isinstance(repair, Affine)
    return float(repair.k), repair.bias


def _error(moments: StepMoments, correction: StepCorrection) -> float:
    """E|m~ - m|^2 per channel: m~ - m = (D - k m - mu) / (1 + k)."""
    k, mu = _affine(correction)
    noise_variance, covariance, m_variance = moments.pooled()
    mean = moments.mean_noise - k * moments.mean_m - mu
    return (noise_variance - 2 * k * covariance + k**2 * m_variance + float(mean.square().mean())) / (1 + k) ** 2


def _variance_gap(moments: StepMoments, correction: StepCorrection, step: Step) -> float:
    """|Var F(m~) + sigma'^2 - Var F(m) - sigma^2|, averaged over channels, F(m) = b m + a x_t."""
    k, _ = _affine(correction)
    b, a, eye = step.gain, step.carry, torch.eye(moments.channels, dtype=torch.float64)
    float_row = torch.cat([b * eye, 0 * eye, a * eye], dim=1)
    repaired_row = torch.cat([b / (1 + k) * eye, b / (1 + k) * eye, a * eye], dim=1)
    covariance = moments.joint.covariance
    float_variance, variance = ((row @ covariance @ row.T).diagonal().mean() for row in (float_row, repaired_row))
    return abs(float(variance - float_variance) + correction.sigma**2 - step.sigma**2)
