"""Rules for the numbers that are subtracted from the channels of a layer's input before it meets its grid."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Shift(ABC):
    """A rule for m of a layer's input, one number for each channel: Q(x - m) + m stands for x.

    Channels whose values lie around different middles share a grid about as wide as the widest of them, in place of one
    that reaches over all: channel-wise shifting of Outlier Suppression+ (Wei et al., EMNLP 2023,
    arXiv 2304.09145, section 3.1).

    Class attributes:
        shifts: whether any m differs from 0.
    """

    shifts: ClassVar[bool] = True

    @abstractmethod
    def of(self, rows: Tensor) -> Tensor:
        """m, (I,).

        Args:
            rows: the values of every channel, (N, I) float32.
        """


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
