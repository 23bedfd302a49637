"""Moments of the quantization noise at one step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.numeric.moments import Moments


@dataclass(frozen=True)
class StepMoments:
    """Streamed moments of one step.

    Args:
        joint: moments of (m, D, x_t), 3C-dimensional, one observation for each sample and pixel.
        per_sample: (N, 3) float64: within each sample, over its channels and pixels, Var D, Cov(D, m) and Var m.
    """

    joint: Moments
    per_sample: Tensor

    @classmethod
    def of(cls, m: Tensor, q: Tensor, x_t: Tensor) -> "StepMoments":
        """The moments of a batch: outputs m and q and states x_t, each (B, C, H, W), on the same inputs."""
        noise = q - m
        pixels = torch.cat([m, noise, x_t], dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        d, flat = noise.double().flatten(1), m.double().flatten(1)
        d, flat = d - d.mean(1, keepdim=True), flat - flat.mean(1, keepdim=True)
        per_sample = torch.stack([(d * d).mean(1), (d * flat).mean(1), (flat * flat).mean(1)], dim=1)
        return cls(Moments.of(pixels), per_sample)

    def merge(self, other: "StepMoments") -> "StepMoments":
        """The moments of both batches."""
        return StepMoments(self.joint.merge(other.joint), torch.cat([self.per_sample, other.per_sample]))

    def without(self, part: "StepMoments") -> "StepMoments":
        """The moments of all samples but those of `part`; `per_sample` is empty, for its rows carry no sample index."""
        return StepMoments(self.joint.without(part.joint), self.per_sample[:0])

    @property
    def channels(self) -> int:
        """C."""
        return len(self.joint.mean) // 3

    @property
    def mean_m(self) -> Tensor:
        """E[m_c], (C,)."""
        return self.joint.mean[: self.channels]

    @property
    def mean_noise(self) -> Tensor:
        """E[D_c], (C,)."""
        return self.joint.mean[self.channels : 2 * self.channels]

    def pooled(self) -> tuple[float, float, float]:
        """Var D, Cov(D, m) and Var m, centred per channel and averaged over channels."""
        c, covariance = self.channels, self.joint.covariance
        noise, across, m = covariance[c : 2 * c, c : 2 * c], covariance[c : 2 * c, :c], covariance[:c, :c]
        return float(noise.diagonal().mean()), float(across.diagonal().mean()), float(m.diagonal().mean())

    def pooled_globally(self) -> tuple[float, float, float]:
        """Var D, Cov(D, m) and Var m, centred by one mean over all channels."""
        var_noise, covariance, var_m = self.pooled()
        noise, m = self.mean_noise - self.mean_noise.mean(), self.mean_m - self.mean_m.mean()
        return (
            var_noise + float(noise.square().mean()),
            covariance + float((noise * m).mean()),
            var_m + float(m.square().mean()),
        )

    @property
    def k(self) -> float:
        """Cov(D, m) / Var m, centred per channel; 0 where m does not vary."""
        _, covariance, variance = self.pooled()
        return covariance / variance if variance > 0 else 0.0

    @property
    def slope(self) -> float:
        """The regression of m on x_t, one number for all channels; 0 where x_t does not vary."""
        c, covariance = self.channels, self.joint.covariance
        x_variance = float(covariance[2 * c :, 2 * c :].diagonal().mean())
        across = float(covariance[:c, 2 * c :].diagonal().mean())
        return across / x_variance if x_variance > 0 else 0.0

    @property
    def noise_power(self) -> float:
        """E|D|^2, averaged over channels."""
        return self.pooled()[0] + float(self.mean_noise.square().mean())

    @property
    def snr(self) -> float:
        """SNR_Q = E|m|^2 / E|D|^2; infinite where there is no noise."""
        _, _, var_m = self.pooled()
        power = self.noise_power
        return (var_m + float(self.mean_m.square().mean())) / power if power > 0 else float("inf")
