"""Quantization to a grid that is taken from the tensor itself."""

from collections.abc import Mapping

from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer.affine import AffineQuantizer
from ptq_diffusion.quantizer.form import Dynamic, Form
from ptq_diffusion.quantizer.granularity import Granularity
from ptq_diffusion.quantizer.input_granularity import PerImage
from ptq_diffusion.quantizer.quantizer import State
from ptq_diffusion.quantizer.range_search import MinMax
from ptq_diffusion.quantizer.unobserved import UnobservedQuantizer


class DynamicQuantizer(UnobservedQuantizer):
    """x_hat on affine grids between the extremes of each image's own numbers.

    An image is quantized as if it were alone, as the `AffineQuantizer` that has seen only it, so that no image depends
    on its neighbours. Nothing is observed, and no state is kept between tensors.

    Args:
        bits: 2 to 8.
        symmetric: fix the zero point at 0 on a signed grid.
        granularity: the groups of one image that have a grid each: all of it, its tokens or its channels.

    Raises:
        ValueError: bits out of range.
    """

    def __init__(self, bits: int, symmetric: bool, granularity: Granularity) -> None:
        super().__init__(Grid(bits, symmetric), granularity)

    @property
    def form(self) -> Form:
        return Dynamic(self.granularity)

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

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, symmetric={self.grid.symmetric}, granularity={self.granularity}"
