"""Integer grids that lie a part of a step apart and are taken in turn, so that their mean is finer than each.

Temporal dithering, by which displays show more levels than they have (frame rate control): grid k of K has the values
n + o_k with the offset o_k = 1/2 - (k + 1/2) / K. The K integers nearest to a number u are told by one of a grid K
times as fine, m = round(K u): n_k = floor((m + k) / K), whose sum is m (Hermite's identity). K is a power of two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 8
"""The largest number of phases."""
ROOM = 6
"""Bits of a finer integer at most: 2 K (n + o_k), a whole number, then has 8."""


def require_phases(phases: int) -> None:
    """Refuse a number of phases that is not 1, 2, 4 or 8.

    Raises:
        ValueError: it is another.
    """
    if phases not in (1, 2, 4, MOST):
        raise ValueError(f"expected 1, 2, 4 or {MOST} phases of the grids of a weight, got {phases}")


def phases_of(bits: int, most: int) -> int:
    """The phases of integers of so many bits: at most so many, and such that finer ones have at most `ROOM` bits.

    Integers of more than 5 bits have one: their error is small beside that of fewer.
    """
    while most > 1 and finer_bits(bits, most) > ROOM:
        most //= 2
    return most


def finer_bits(bits: int, phases: int) -> int:
    """The bits of an integer that tells those of all phases: bits + log2 K."""
    return bits + phases.bit_length() - 1


def phase_at(i: int, phases: int) -> int:
    """The phase k in place i of their order: 0, K - 1, 1, K - 2, ..., so that the offsets of every two add up to 0."""
    pair, second = divmod(i % phases, 2)
    return phases - 1 - pair if second else pair


def phases_at(i: int, phases: int, shape: Sequence[int]) -> Tensor:
    """The phase of every weight at step i, int32, which broadcasts against a weight of this shape, (O, I, ...).

    Neighbours among the channels of outputs and of inputs are in different ones, so that the offsets within one output
    and those of a step nearly cancel too: in one phase all weights that are nearly 0 would be an offset of one sign.
    """
    order = torch.tensor([phase_at(place, phases) for place in range(phases)], dtype=torch.int32)
    places = torch.arange(shape[0])[:, None] + torch.arange(shape[1])[None]
    return order[(places + i) % phases].view(*shape[:2], *[1] * (len(shape) - 2))


def doubled(fine: Tensor, phase: Tensor, phases: int, highest: int) -> Tensor:
    """2 K (n_k + o_k), whole numbers, int32.

    Args:
        fine: m, int32.
        phase: k of every element, int32, which broadcasts against m.
        phases: K.
        highest: of n, beyond which the last values of m would lead.
    """
    n = torch.div(fine + phase, phases, rounding_mode="floor").clamp(max=highest)
    return 2 * phases * n + (phases - 1 - 2 * phase)
