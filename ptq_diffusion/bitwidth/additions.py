"""Operations that a correction adds to those of a plan."""

from dataclasses import dataclass

from ptq_diffusion.numeric.grid import FLOAT_BITS


@dataclass(frozen=True)
class Additions:
    """Operations of a correction for one image, over all steps of a table.

    Args:
        macs: multiply-accumulates in float, at 32 x 32 bit operations each.
        evaluations: of the network, beside those of the table.
    """

    macs: int = 0
    evaluations: int = 0

    def __add__(self, other: "Additions") -> "Additions":
        return Additions(self.macs + other.macs, self.evaluations + other.evaluations)

    def total(self, bops: int, steps: int) -> int:
        """Bit operations of a plan over so many steps, these added."""
        return self.evaluated(bops, steps) + self.macs * FLOAT_BITS**2

    def evaluated(self, bops: int, steps: int) -> int:
        """Bit operations of a part of the network over so many steps, the further evaluations added."""
        # An evaluation beside the table's counts as its mean step, whatever bits it has: exact where bits do not vary.
        return bops * (steps + self.evaluations) // steps

    def room(self, limit: int, steps: int) -> int:
        """The most bit operations of a plan whose `total` is within a limit; below 0 where these alone exceed it."""
        return ((limit - self.macs * FLOAT_BITS**2 + 1) * steps - 1) // (steps + self.evaluations)
