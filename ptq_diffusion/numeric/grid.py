"""Integer grids: the integers that a quantized tensor may hold."""

from dataclasses import dataclass

FLOAT_BITS = 32
"""The bitwidth of what is not quantized."""


@dataclass(frozen=True)
class Grid:
    """The 2^bits consecutive integers of a quantized tensor.

    A symmetric grid is signed and holds zero at the integer 0: 4 bits are -8 ... 7. An affine grid is unsigned,
    0 ... 15, and a zero point says which of its integers stands for zero.

    Args:
        bits: 2 to 8.
        symmetric: whether the zero point is fixed at 0.

    Raises:
        ValueError: bits out of range.
    """

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"expected 2 to 8 bits (or {FLOAT_BITS} for float), got {self.bits}")

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def high(self) -> int:
        """The largest integer."""
        return self.low + 2**self.bits - 1
