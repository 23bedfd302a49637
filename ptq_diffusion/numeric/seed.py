"""Randomness that belongs to a sample: a function of (seed, purpose, index), never of batch, rank or clock."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of integers and words; equal parts give equal seeds on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


class SampleNoise:
    """Standard normal noise of a set of samples, one private stream for each.

    Sample *i* of run seed *s* draws from its own generator, so its noise does not depend on the batch that it shares.
    Noise is drawn on the CPU and moved, so a device does not change it either.

    Args:
        seed: the run's seed.
        indices: which samples the batch holds, length B.
        shape: the shape of one sample, such as (C, H, W).
        purpose: what the samples are for; samples of different purposes share no noise, whatever their seeds.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: Sequence[int], purpose: str = "images") -> None:
        self._streams = [generator(purpose, seed, index) for index in indices]
        self._shape = tuple(shape)

    def draw(self, device: torch.device | str = "cpu") -> Tensor:
        """The next noise of every sample, shape (B, *shape), float32."""
        rows = [torch.randn(self._shape, generator=stream) for stream in self._streams]
        return torch.stack(rows).to(device)
