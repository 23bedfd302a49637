"""What is measured of the quantization noise D = q - m, step by step, and kept instead of trajectories."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.sampler.step import Step, fingerprint


@dataclass(frozen=True)
class Fingerprint:
    """What statistics belong to.

    Args:
        network: of the quantized network, `network_fingerprint`.
        steps: of the sampler's table, `sampler.step.fingerprint`.
        shape: of one latent, (C, H, W).
    """

    network: str
    steps: str
    shape: tuple[int, ...]


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
        """Moments of a batch: outputs m and q and states x_t, each (B, C, H, W), on the same inputs."""
        noise = q - m
        pixels = torch.cat([m, noise, x_t], dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        d, flat = noise.double().flatten(1), m.double().flatten(1)
        d, flat = d - d.mean(1, keepdim=True), flat - flat.mean(1, keepdim=True)
        per_sample = torch.stack([(d * d).mean(1), (d * flat).mean(1), (flat * flat).mean(1)], dim=1)
        return cls(Moments.of(pixels), per_sample)

    def merge(self, other: "StepMoments") -> "StepMoments":
        """The moments of both batches."""
        return StepMoments(self.joint.merge(other.joint), torch.cat([self.per_sample, other.per_sample]))

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
        of_noise, across, of_m = covariance[c : 2 * c, c : 2 * c], covariance[c : 2 * c, :c], covariance[:c, :c]
        return float(of_noise.diagonal().mean()), float(across.diagonal().mean()), float(of_m.diagonal().mean())

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
    def snr(self) -> float:
        """SNR_Q = E|m|^2 / E|D|^2; infinite where there is no noise."""
        var_noise, _, var_m = self.pooled()
        power = var_noise + float(self.mean_noise.square().mean())
        return (var_m + float(self.mean_m.square().mean())) / power if power > 0 else float("inf")


@dataclass(frozen=True)
class NoiseStatistics:
    """The moments of every step of a table, and what they belong to."""

    fingerprint: Fingerprint
    steps: Sequence[StepMoments]

    def require(self, fingerprint: Fingerprint) -> None:
        """Refuse to serve another network, step table or resolution.

        Raises:
            ValueError: a part of the fingerprint differs; the message names it.
        """
        for field in dataclasses.fields(Fingerprint):
            ours, theirs = getattr(self.fingerprint, field.name), getattr(fingerprint, field.name)
            if ours != theirs:
                raise ValueError(
                    f"expected noise statistics of the same {field.name}: they were measured for {ours}, "
                    f"this run has {theirs}; measure them again for this run"
                )

    def require_table(self, steps: Sequence[Step]) -> None:
        """Refuse to serve another step table, or one that the moments do not cover.

        Raises:
            ValueError: the table is not the one that was measured on.
        """
        if len(self.steps) != len(steps):
            raise ValueError(
                f"expected statistics of all {len(steps)} steps, got {len(self.steps)}; measure them for this table"
            )
        self.require(dataclasses.replace(self.fingerprint, steps=fingerprint(steps)))

    def merge(self, other: "NoiseStatistics") -> "NoiseStatistics":
        """The statistics of both sets of samples."""
        self.require(other.fingerprint)
        return NoiseStatistics(self.fingerprint, [a.merge(b) for a, b in zip(self.steps, other.steps, strict=True)])

    def tensors(self) -> dict[str, Tensor]:
        """All moments by `step/name`, to be kept as safetensors."""
        named: dict[str, Tensor] = {}
        for i, step in enumerate(self.steps):
            named[f"{i}/count"] = torch.tensor(step.joint.count)
            named[f"{i}/mean"], named[f"{i}/scatter"] = step.joint.mean, step.joint.scatter
            named[f"{i}/per_sample"] = step.per_sample
        return named

    @classmethod
    def of_tensors(cls, fingerprint: Fingerprint, named: Mapping[str, Tensor]) -> "NoiseStatistics":
        """The inverse of `tensors`."""
        count = sum(name.endswith("/count") for name in named)
        return cls(fingerprint, [_step(named, i) for i in range(count)])

    def save(self, path: Path) -> None:
        """Write one safetensors file; the fingerprint lies in its metadata."""
        save_file(self.tensors(), path, metadata={"fingerprint": json.dumps(dataclasses.asdict(self.fingerprint))})

    @classmethod
    def load(cls, path: Path) -> "NoiseStatistics":
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds no fingerprint.
        """
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if "fingerprint" not in metadata:
            raise ValueError(f"{path} holds no noise statistics: its metadata has no fingerprint")
        recorded = json.loads(metadata["fingerprint"])
        owner = Fingerprint(recorded["network"], recorded["steps"], tuple(recorded["shape"]))
        return cls.of_tensors(owner, load_file(path))


def _step(named: Mapping[str, Tensor], i: int) -> StepMoments:
    joint = Moments(int(named[f"{i}/count"]), named[f"{i}/mean"], named[f"{i}/scatter"])
    return StepMoments(joint, named[f"{i}/per_sample"])
