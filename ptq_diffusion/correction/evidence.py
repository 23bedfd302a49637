"""Evidence that one step of a correction is fitted on: moments of the noise, or images along a path."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Generic, Self, TypeVar

from torch import Tensor

from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.repair.repair import Repair, repaired_output


@dataclass(frozen=True)
class MomentEvidence:
    """Moments of the noise of one step along float sampling.

    Args:
        whole: moments of all images.
        even: moments of the images of even index, for fitting where those of odd index are held out; None where halves
            were not told apart.
    """

    whole: StepMoments
    even: StepMoments | None = None


@dataclass(frozen=True)
class PathBatch:
    """Images at one step of a path, without m, the float output on the states of the path.

    Args:
        first: the index of the first image.
        q: the quantized output on x_t, (B, C, H, W).
        x_t: the states on the path, (B, C, H, W).
        features: the input of the quantized output layer, (B, F, H / p, W / p) of patches of p x p.
        float_m: the float output on float_x_t.
        float_x_t: the states of float sampling with the same noise; on the float path x_t itself.
        past: the predictions of x_0 on the path that a multistep sampler reads here, the latest first, each
            (B, C, H, W).
        float_past: those of float sampling.
    """

    first: int
    q: Tensor
    x_t: Tensor
    features: Tensor
    float_m: Tensor
    float_x_t: Tensor
    past: tuple[Tensor, ...] = field(default=(), kw_only=True)
    float_past: tuple[Tensor, ...] = field(default=(), kw_only=True)

    def half(self, parity: int) -> Self:
        """The images of even (0) or odd (1) index, maybe none; the image of index i becomes that of index i // 2."""
        offset = (self.first + parity) % 2
        tensors = {name: getattr(self, name)[offset::2] for name in tensor_names(type(self))}
        past, float_past = (tuple(x_0[offset::2] for x_0 in earlier) for earlier in (self.past, self.float_past))
        return type(self)((self.first + offset) // 2, **tensors, past=past, float_past=float_past)

    def repaired(self, repairs: Sequence[Repair]) -> Tensor:
        """m~ after all repairs, (B, C, H, W)."""
        return repaired_output(repairs, self.q, self.x_t, self.features)


@dataclass(frozen=True)
class PairedBatch(PathBatch):
    """Images at one step of a path, with m, the float output on the states of the path.

    Args:
        m: the float output on x_t, (B, C, H, W).
    """

    m: Tensor


def tensor_names(kind: type[PathBatch]) -> list[str]:
    """The names of the fields of a batch that are one tensor, (B, C, H, W) or (B, F, H, W)."""
    return [part.name for part in fields(kind) if part.name not in ("first", "past", "float_past")]


SomeBatch = TypeVar("SomeBatch", bound=PathBatch)
"""Batches with m or without."""


@dataclass(frozen=True)
class PathEvidence:
    """Images of one step along a path, in batches that may be read from disk when they are asked for.

    Args:
        paired: the images with m, the first ones.
        unpaired: the images without m, all others.
        is_last: whether it is the last step, whose x_s is the image.
    """

    paired: Sequence[PairedBatch]
    unpaired: Sequence[PathBatch] = ()
    is_last: bool = False

    def batches(self) -> Iterator[PathBatch]:
        """All images, one batch at a time."""
        return chain(self.paired, self.unpaired)

    def half(self, parity: int) -> "PathEvidence":
        """The images of even (0) or odd (1) index."""
        return replace(self, paired=_half(self.paired, parity), unpaired=_half(self.unpaired, parity))

    def repaired(self, repairs: Sequence[Repair]) -> "PathEvidence":
        """The same images with m~ after these repairs in the place of q."""
        if not repairs:
            return self
        return replace(self, paired=_repaired(self.paired, repairs), unpaired=_repaired(self.unpaired, repairs))


class _Derived(Sequence[SomeBatch], Generic[SomeBatch]):
    """Batches made of others one at a time, when they are asked for.

    Args:
        batches: the others.
        places: which of them.
        change: makes a batch of one of them.
    """

    def __init__(
        self, batches: Sequence[SomeBatch], places: Sequence[int], change: Callable[[SomeBatch], SomeBatch]
    ) -> None:
        self._batches, self._places, self._change = batches, places, change

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> SomeBatch:  # type: ignore[override]
        return self._change(self._batches[self._places[place]])


def _half(batches: Sequence[SomeBatch], parity: int) -> Sequence[SomeBatch]:
    """The half of every batch, batches without an image left out."""
    places = [place for place, batch in enumerate(batches) if len(batch.half(parity).q)]
    return _Derived(batches, places, lambda batch: batch.half(parity))


def _repaired(batches: Sequence[SomeBatch], repairs: Sequence[Repair]) -> Sequence[SomeBatch]:
    return _Derived(batches, range(len(batches)), lambda batch: replace(batch, q=batch.repaired(repairs)))
