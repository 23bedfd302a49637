"""Sums over the integers of a weight, by which the code of zero is taken off."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sums:
    """Sums over the integers of a weight, or of one part of it, by output channel.

    Args:
        total: sum of n, (O,) float64.
        power: sum of n^2, (O,) float64.
    """

    total: Tensor
    power: Tensor

    @classmethod
    def of(cls, part: Tensor) -> "Sums":
        """The sums of integers, (O, ...)."""
        rows = part.flatten(1).double()
        return cls(rows.sum(1), rows.square().sum(1))

    def small(self, zero: int, highest: int) -> bool:
        """Whether z sum n is within a few deviations of sum u n over random codes: taking it off costs no digit.

        Args:
            zero: z, the code of zero.
            highest: the highest code u less the lowest.
        """
        return bool(((zero * self.total).abs() <= 2 * highest * self.power.sqrt()).all())
