"""Quantization to powers of two, for the output of a softmax."""

from collections.abc import Mapping

from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer.form import Form, Log2
from ptq_diffusion.quantizer.granularity import PerTensor
from ptq_diffusion.quantizer.quantizer import State
from ptq_diffusion.quantizer.unobserved import UnobservedQuantizer


class Log2Quantizer(UnobservedQuantizer):
    """p_hat = 2^-n with n = clamp(round(-log2 p), 0, 2^bits - 1), the last n standing for 0.

    A softmax has few large outputs and many small ones, whose ratios matter; a product with a power of two is a shift.
    Miyashita et al., arXiv 1603.01025; of softmax Lin et al. (FQ-ViT), IJCAI 2022, arXiv 2111.13824. The range, 0 to 1,
    is known, so that nothing is observed.

    Args:
        bits: 2 to 8.

    Raises:
        ValueError: bits out of range.
    """

    signed = False

    def __init__(self, bits: int) -> None:
        super().__init__(Grid(bits, symmetric=False), PerTensor())

    @property
    def form(self) -> Form:
        return Log2()

    def observed(self, *observations: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        """Take statistics of any kind, which are not read: the range is known."""
        self.require(State.OBSERVING)

    def to_integers(self, x: Tensor) -> Tensor:
        self.require(State.FROZEN)
        return Log2.integers(x, self.grid)

    def from_integers(self, integers: Tensor) -> Tensor:
        return Log2.values(integers, self.grid)

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}"
