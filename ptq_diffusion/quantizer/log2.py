"""Quantization to powers of two, for the output of a softmax."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer.form import Form, Log2
from ptq_diffusion.quantizer.granularity import PerTensor
from ptq_diffusion.quantizer.quantizer import Quantizer, State


class Log2Quantizer(Quantizer):
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
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(PerTensor())
        self.grid = Grid(bits, symmetric=False)
        # A network stores these in the places of a grid's.
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))

    @property
    def form(self) -> Form:
        return Log2()

    def observe(self, x: Tensor) -> None:  # noqa: ARG002
        self.require(State.OBSERVING)

    def freeze(self) -> None:
        self.require(State.OBSERVING)
        self.state = State.FROZEN

    def observation(self) -> Mapping[str, Tensor]:
        self.require(State.OBSERVING)
        return {}

    def observed(self, *observations: Mapping[str, Tensor]) -> None:  # noqa: ARG002
        """Take statistics of any kind, which are not read: the range is known."""
        self.require(State.OBSERVING)

    def to_integers(self, x: Tensor) -> Tensor:
        self.require(State.FROZEN)
        return Log2.integers(x, self.grid)

    def from_integers(self, integers: Tensor) -> Tensor:
        return Log2.values(integers, self.grid)

    def forward(self, x: Tensor) -> Tensor:
        self.require(State.FROZEN)
        return self.form.fake_quantized(x, self.grid, self.scale, self.zero_point)

    def differentiable(self, x: Tensor) -> Tensor:
        """x_hat as `forward` gives it, by operations that a gradient passes."""
        return self(x)

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}"
