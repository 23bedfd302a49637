"""Rules for the numbers that are subtracted from the channels of a layer's input before it meets its grid."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

GOLDEN = (5**0.5 - 1) / 2
"""Parts of an interval at its multiples, modulo 1, lie the most evenly, however many there are."""
SILVER = 2**0.5 - 1
"""Nearly as even, and no multiple of the other, so that channels and steps together fill an interval too."""


class Shift(ABC):
    """A rule for m of a layer's input, one number for each channel: Q(x - m) + m stands for x.

    Channels whose values lie around different middles share a grid about as wide as the widest of them, in place of one
    that reaches over all: channel-wise shifting of Outlier Suppression+ (Wei et al., EMNLP 2023,
    arXiv 2304.09145, section 3.1).

    Class attributes:
        shifts: whether any m differs from 0.
        shifts_bordered: whether inputs of convolutions with padding are shifted too. Their product of weight and m is
            another at the border, where there is no m: a map in place of a bias.
    """

    shifts: ClassVar[bool] = True
    shifts_bordered: ClassVar[bool] = False

    @abstractmethod
    def of(self, rows: Tensor) -> Tensor:
        """m, (I,).

        Args:
            rows: the values of every channel, (N, I) float32.
        """

    def fractions(self, i: int, channels: int) -> Tensor | None:  # noqa: ARG002
        """Fractions of the grid's scale that are added to m at the sampler's step i, (I,) float64; None for none."""
        return None


class NoShift(Shift):
    """m = 0: every channel as it is."""

    shifts = False

    def of(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(rows[0])


class MidRangeShift(Shift):
    """m = (min x + max x) / 2, as Outlier Suppression+ has it, eq. 2."""

    def of(self, rows: Tensor) -> Tensor:
        return (rows.amin(0) + rows.amax(0)) / 2


class MeanShift(Shift):
    """m = E x, which a single large value hardly moves."""

    def of(self, rows: Tensor) -> Tensor:
        return rows.mean(0)


NO_SHIFT = NoShift()
"""The rule of inputs that stay where they are."""


class Dither(Shift):
    """m and a fraction u of the grid's scale that changes with the sampler's step and the channel.

    Inputs change little from step to step, so that their rounding errors on one grid are alike and add up over the
    steps; on grids that lie apart they cancel in part, as in a dithered quantizer (Roberts, 1962; Schuchman, 1964),
    here without chance. u = frac(1/2 + i golden ratio + c sqrt 2) - 1/2 fills [-1/2, 1/2) evenly in steps i and
    channels c. Zero is no longer on the grid, so that an input that is often 0 has more error at a single step.

    Args:
        around: chooses m of inputs without a border of zeros.

    Raises:
        ValueError: `around` is a dither too.
    """

    shifts_bordered = True

    def __init__(self, around: Shift = NO_SHIFT) -> None:
        if isinstance(around, Dither):
            raise ValueError("expected a shift that a dither is around, got another dither; leave out around")
        self.around = around

    def of(self, rows: Tensor) -> Tensor:
        return self.around.of(rows)

    def fractions(self, i: int, channels: int) -> Tensor:
        c = torch.arange(channels, dtype=torch.float64)
        return torch.remainder(0.5 + GOLDEN * i + SILVER * c, 1) - 0.5
