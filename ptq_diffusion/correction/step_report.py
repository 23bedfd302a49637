"""Report of one step of a fitted correction."""

from dataclasses import dataclass

from torch import Tensor

from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.sampler.step import Step


@dataclass(frozen=True)
class StepReport:
    """Report of one step: the noise, what the correction explains of it, and the residual's shape.

    The residual is r = D - k m - mu of a correction from moments, times its `residual_scale`, with which D2-DPM's is m~
    - m, and m~ - m of one along a path, on the states that it was fitted on and whose float output is known. PTQD adds
    it to the sampler's noise, as if it were normal, white and fresh at every step: the last four say how far it is.
    They are of r centred per channel and pooled over channels, samples and pixels, and tell of the whole pool: samples
    or channels of unequal variance are heavy tails too. None stands for what does not apply, and where there is no
    residual or it was not measured.

    Args:
        t: the time.
        k: the coefficient of m in D = k m + mu + r, a slope, although PTQD calls it a correlation coefficient: the one
            in use, or the noise's own, Cov(D, m) / Var m, where the correction has no such term.
        bias: the root mean square over channels of the bias, likewise.
        variance: v, the residual's variance.
        sigma: the noise scale of the step's table; of a learned variance, here and below, the lower end.
        sigma_used: sigma', the noise scale that is added.
        r2: 1 - E|residual|^2 / E|D|^2, the share of the noise that the correction explains.
        budget: the share of sigma^2 that the residual takes, above 1 where sigma^2 cannot absorb it, below 0 where a
            multistep sampler meets it again with the other sign; None where the sampler adds no noise.
        snr_q: signal-to-noise ratio of the quantized output, E|m|^2 / E|D|^2, of powers and not in dB.
        snr_f: that of the forward process.
        r2_held_out: R^2 on the samples of odd index of a fit on those of even index; well below r2 where there are too
            few samples. Of a regression, used or left out, and of a chain that has one: each half
            of the samples from the other, before matching.
        reliability: of the noise's own k, the share of k^2 that is no sampling error (`higher_moments.reliability`): 1
            where groups of samples agree on k, near 0 where k had better be left alone.
        skewness: E[r^3] / E[r^2]^1.5, 0 of a normal residual.
        kurtosis: the excess E[r^4] / E[r^2]^2 - 3, 0 of a normal residual, above it of heavy tails.
        neighbour_correlation: of r with r one pixel to the right and below, their mean; 0 of white noise.
        step_correlation: of r with r of the step before, at the same pixel of the same sample; 0 of fresh noise. What
            is correlated adds up over steps, and no variance absorbs it.
    """

    t: float
    k: float
    bias: float
    variance: float
    sigma: float
    sigma_used: float
    r2: float
    budget: float | None
    snr_q: float
    snr_f: float
    r2_held_out: float | None = None
    reliability: float | None = None
    skewness: float | None = None
    kurtosis: float | None = None
    neighbour_correlation: float | None = None
    step_correlation: float | None = None

    @classmethod
    def without_diagnostics(
        cls,
        step: Step,
        moments: StepMoments,
        k: float,
        bias: Tensor,
        variance: float,
        unexplained: float,
        sigma_used: float,
        budget: float | None,
    ) -> "StepReport":
        """The report of a step without diagnostics.

        Args:
            step: the row of the table.
            moments: of the noise before the repairs.
            k: see the field.
            bias: of every channel, (C,).
            variance: of the residual.
            unexplained: E|residual|^2, averaged over channels.
            sigma_used: sigma'.
            budget: see the field.
        """
        power = moments.noise_power
        return cls(
            t=step.t,
            k=k,
            bias=float(bias.square().mean().sqrt()),
            variance=variance,
            sigma=step.sigma,
            sigma_used=sigma_used,
            r2=1 - unexplained / power if power > 0 else 1.0,
            budget=budget,
            snr_q=moments.snr,
            snr_f=step.snr,
        )
