"""Statistics of the quantization noise D = q - m, step by step, kept instead of trajectories."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq_diffusion.correction.noise.higher_moments import HigherMoments, terms
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.sampler.table import Table


@dataclass(frozen=True)
class Fingerprint:
    """The owner of statistics: a network, a table and a resolution.

    Args:
        network: `QuantizedDenoiser.fingerprint` of the quantized network.
        steps: `Table.fingerprint` of the sampler's table.
        shape: of one state, (C, H, W).
    """

    network: str
    steps: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NoiseStatistics:
    """The moments of every step of a table, and their owner.

    Args:
        fingerprint: the owner.
        steps: the moments of all samples.
        even: the moments of the samples of even index, for fitting where those of odd index are held out; empty where
            halves were not told apart.
        higher: the sums from which the residual is diagnosed; empty likewise.
    """

    fingerprint: Fingerprint
    steps: Sequence[StepMoments]
    even: Sequence[StepMoments] = ()
    higher: Sequence[HigherMoments] = ()

    @classmethod
    def of(
        cls, fingerprint: Fingerprint, visits: Iterable[tuple[Tensor, Tensor, Tensor]], first: int
    ) -> "NoiseStatistics":
        """The statistics of one batch on its way through all steps; no more than two steps are held.

        Args:
            fingerprint: the owner.
            visits: m, q and x_t at every step, each (B, C, H, W).
            first: the index of the first sample.
        """
        steps, even, higher, before = [], [], [], None
        for m, q, x_t in visits:
            steps.append(StepMoments.of(m, q, x_t))
            even.append(StepMoments.of(*(tensor[first % 2 :: 2] for tensor in (m, q, x_t))))
            now = terms(m, q)
            higher.append(HigherMoments.of(now, before, first))
            before = now
        return cls(fingerprint, steps, even, higher)

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

    def require_table(self, steps: Table) -> None:
        """Refuse to serve another step table, or one that the moments do not cover.

        Raises:
            ValueError: the table is not the one that was measured on.
        """
        if len(self.steps) != len(steps):
            raise ValueError(
                f"expected statistics of all {len(steps)} steps, got {len(self.steps)}; measure them for this table"
            )
        self.require(dataclasses.replace(self.fingerprint, steps=steps.fingerprint()))

    def merge(self, other: "NoiseStatistics") -> "NoiseStatistics":
        """The statistics of both sets of samples."""
        self.require(other.fingerprint)
        return NoiseStatistics(
            self.fingerprint,
            [a.merge(b) for a, b in zip(self.steps, other.steps, strict=True)],
            [a.merge(b) for a, b in zip(self.even, other.even, strict=True)],
            [a.merge(b) for a, b in zip(self.higher, other.higher, strict=True)],
        )

    def tensors(self) -> dict[str, Tensor]:
        """All moments by `step/name`, to be kept as safetensors."""
        named: dict[str, Tensor] = {}
        for i, step in enumerate(self.steps):
            named |= _named(f"{i}/", step)
        for i, step in enumerate(self.even):
            named |= _named(f"{i}/even_", step)
        for i, moments in enumerate(self.higher):
            named |= {f"{i}/{field.name}": getattr(moments, field.name) for field in dataclasses.fields(HigherMoments)}
        return named

    @classmethod
    def of_tensors(cls, fingerprint: Fingerprint, named: Mapping[str, Tensor]) -> "NoiseStatistics":
        """The inverse of `tensors`."""
        names = [field.name for field in dataclasses.fields(HigherMoments)]
        steps, even, higher = (
            range(sum(name.endswith(f"/{last}") for name in named)) for last in ("count", "even_count", names[0])
        )
        return cls(
            fingerprint,
            [_step(f"{i}/", named) for i in steps],
            [_step(f"{i}/even_", named) for i in even],
            [HigherMoments(**{name: named[f"{i}/{name}"] for name in names}) for i in higher],
        )

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


def _named(prefix: str, step: StepMoments) -> dict[str, Tensor]:
    return {
        f"{prefix}count": torch.tensor(step.joint.count),
        f"{prefix}mean": step.joint.mean,
        f"{prefix}scatter": step.joint.scatter,
        f"{prefix}per_sample": step.per_sample,
    }


def _step(prefix: str, named: Mapping[str, Tensor]) -> StepMoments:
    joint = Moments(int(named[f"{prefix}count"]), named[f"{prefix}mean"], named[f"{prefix}scatter"])
    return StepMoments(joint, named[f"{prefix}per_sample"])
