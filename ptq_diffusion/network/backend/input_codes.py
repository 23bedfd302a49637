"""Inputs as unsigned 8-bit codes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.quantizer import Numbers

MIDDLE = 128
"""The code between unsigned and signed ones, the highest bit."""


@dataclass(frozen=True)
class InputCodes:
    """u = clamp(round(x / s), low, high) - low in uint8: the lowest integer of a grid has the code 0.

    Args:
        numbers: of the grid, in which zero is the integer 0.
        border: the rows and the columns of zeros that are laid around an image; None for none.
    """

    numbers: Numbers
    border: tuple[int, int] | None = None

    @property
    def zero(self) -> int:
        """The code of zero, 0 to 255."""
        return -self.numbers.low

    @property
    def highest(self) -> int:
        """The highest code."""
        return self.numbers.high - self.numbers.low

    def __call__(self, x: Tensor) -> Tensor:
        """The codes of x, of its shape, or (B, C, H + 2 rows, W + 2 columns) of an image in a border."""
        # Through int8: torch converts to it several times faster than to uint8.
        integers = whole_numbers(x, self.numbers)
        shift = self.zero - MIDDLE
        if shift:
            integers.add_(shift)
        signed = self._bordered(integers, shift) if any(self.border or ()) else integers.to(torch.int8)
        return signed.view(torch.uint8).bitwise_xor_(MIDDLE)

    def _bordered(self, integers: Tensor, zero: int) -> Tensor:
        assert self.border is not None
        (rows, columns), (batch, channels, height, width) = self.border, integers.shape
        shape = batch, channels, height + 2 * rows, width + 2 * columns
        empty = torch.empty(shape, dtype=torch.int8, memory_format=torch.channels_last)
        signed = empty.fill_(zero)
        signed[:, :, rows : rows + height, columns : columns + width].copy_(integers)
        return signed


def whole_numbers(x: Tensor, numbers: Numbers) -> Tensor:
    """The integers of x on a grid in which zero is 0, whole numbers in float32, of its shape."""
    return (x.float() * numbers.inverse).round_().clamp_(numbers.low, numbers.high)
