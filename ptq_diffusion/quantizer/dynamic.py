"""Quantization to a grid that is taken from the tensor itself."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer.affine import AffineQuantizer
from ptq_diffusion.quantizer.form import Dynamic, Form
from ptq_diffusion.quantizer.granularity import Granularity
from ptq_diffusion.quantizer.input_granularity import PerImage
from ptq_diffusion.quantizer.quantizer import Quantizer, State
from ptq_diffusion.quantizer.range_search import MinMax


class DynamicQuantizer(Quantizer):
    """x_hat on affine grids between the extremes of each image's own numbers.

    An image is quantized as if it were alone, as the `AffineQuantizer` that has seen only it, so that no image depends
    on its neighbours. Nothing is observed: a stream of tensors leaves no trace.

    Args:
        bits: 2 to 8.
        symmetric: fix the zero point at 0 on a signed grid.
        granularity: the groups of one image that have a grid each: all of it, its tokens or its channels.

    Raises:
        ValueError: bits out of range.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, symmetric: bool, granularity: Granularity) -> None:
        super().__init__(granularity)
        self.grid = Grid(bits, symmetric)
        # Every image has its own; a network stores these in their places.
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))

    @property
    def form(self) -> Form:
        return Dynamic(self.granularity)

    def observe(self, x: Tensor) -> None:  # noqa: ARG002
        self.require(State.OBSERVING)

    def freeze(self) -> None:
        self.require(State.OBSERVING)
        self.state = State.FROZEN

    def observation(self) -> Mapping[str, Tensor]:
        self.require(State.OBSERVING)
        return {}

    def observed(self, *observations: Mapping[str, Tensor]) -> None:
        self.require(State.OBSERVING)
        if names := [name for observation in observations for name in observation]:
            raise ValueError(
                f"expected no observations for a dynamic quantizer, got {', '.join(names)}; calibrate again"
            )

    def at(self, x: Tensor) -> AffineQuantizer:
        """The quantizer with the grids that x has, fixed."""
        self.require(State.FROZEN)
        # The search reads the ends of the distribution alone, so that the number of bins decides nothing.
        quantizer = AffineQuantizer(self.grid.bits, self.grid.symmetric, PerImage(self.granularity), MinMax(), 4)
        quantizer.observe(x)
        quantizer.freeze()
        return quantizer

    def to_integers(self, x: Tensor) -> Tensor:
        return self.at(x).to_integers(x)

    def from_integers(self, integers: Tensor) -> Tensor:
        """Raises RuntimeError: integers do not tell the grids of the tensor that they come from."""
        raise RuntimeError(
            f"expected integers of fixed grids, got {tuple(integers.shape)} of a dynamic quantizer; ask at(x), the "
            "quantizer with the grids of the tensor x"
        )

    def forward(self, x: Tensor) -> Tensor:
        self.require(State.FROZEN)
        return self.form.fake_quantized(x, self.grid, self.scale, self.zero_point)

    def differentiable(self, x: Tensor) -> Tensor:
        """x_hat as `forward` gives it, by operations that a gradient passes, the grids as constants."""
        return self(x)

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, symmetric={self.grid.symmetric}, granularity={self.granularity}"
