"""Forms of quantizers of inputs: the arithmetic, apart from bits and scales, which may change from step to step."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.numeric.rounding import passing_through, straight_through
from ptq_diffusion.quantizer.granularity import Granularity, PerTensor
from ptq_diffusion.quantizer.input_granularity import PerInputChannel, PerParts, PerToken
from ptq_diffusion.quantizer.range_search import affine_parameters


class Numbers(NamedTuple):
    """The numbers that a forward needs of a grid: low - z, high - z, s and 1 / s in float32.

    Whole numbers this small are exact in float32, so clamping between these saves adding z and subtracting it.
    """

    low: int
    high: int
    scale: float
    inverse: float

    @classmethod
    def of(cls, scale: Tensor, zero_point: Tensor, grid: Grid) -> "Numbers":
        """The numbers of a scale s, (1,) float32, and a zero point z, (1,) int32."""
        return cls(grid.low - int(zero_point), grid.high - int(zero_point), float(scale), float(1 / scale))

    def fake_quantized(self, x: Tensor) -> Tensor:
        """x_hat, the shape and the dtype of x: its nearest values on the grid, straight through for gradients."""
        if torch.is_grad_enabled() and x.requires_grad:
            numbers = x.detach().float() * self.inverse
            passes = (numbers.round_() >= self.low) & (numbers <= self.high)
            return passing_through(x, self._of_integers(numbers).to(x.dtype), passes)
        # In place: several times faster on a CPU than torch's fused operator, which also makes a gradient mask.
        return self._of_integers((x.float() * self.inverse).round_()).to(x.dtype)

    def _of_integers(self, numbers: Tensor) -> Tensor:
        """Values of whole numbers, in their place."""
        numbers = numbers.clamp_(self.low, self.high)
        # 0 + s i instead of s i, at the same cost: a zero loses its sign, as it does where z is added.
        return torch.add(torch.zeros(()), numbers, alpha=self.scale, out=numbers)


def fake_quantized(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """x_hat of scales and zero points that broadcast against x, in its dtype, straight through for gradients.

    The gradient of x is 1 where x / s + z rounds to an integer of the grid and 0 where it is clamped. Scales that
    require a gradient get that of learned step sizes, Esser et al., ICLR 2020, arXiv 1902.08153, eq. 3.
    """
    low, high = (grid.low - zero_point).float(), (grid.high - zero_point).float()
    integers = straight_through(x.float() * (1 / scale)).clamp(low, high)
    # Adding 0 takes the sign of a zero away.
    return (integers * scale + 0.0).to(x.dtype)


class Form(ABC):
    """The arithmetic of a quantizer of inputs; a frozen value."""

    @abstractmethod
    def fake_quantized(self, x: Tensor, grid: Grid, scale: Tensor, zero_point: Tensor) -> Tensor:
        """x_hat, the shape and the dtype of x, straight through for gradients.

        Args:
            x: an input, images first.
            grid: of the integers.
            scale: (G,) float32.
            zero_point: (G,) int32.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """The form as JSON, which `described_form` reads."""


@dataclass(frozen=True)
class Static(Form):
    """Affine grids found beforehand, as those of an `AffineQuantizer`.

    Args:
        granularity: the G groups that have a grid each.
    """

    granularity: Granularity

    def fake_quantized(self, x: Tensor, grid: Grid, scale: Tensor, zero_point: Tensor) -> Tensor:
        spread = self.granularity.spread
        return fake_quantized(x, spread(scale, x.shape), spread(zero_point, x.shape), grid)

    def description(self) -> dict[str, Any]:
        return {"form": "static", **_described(self.granularity)}


@dataclass(frozen=True)
class Dynamic(Form):
    """Affine grids between the extremes of every image's own numbers, as those of a `DynamicQuantizer`; G is 1.

    The scale and the zero point that a network stores are not read.

    Args:
        granularity: the groups of one image that have a grid each.
    """

    granularity: Granularity

    def fake_quantized(self, x: Tensor, grid: Grid, scale: Tensor, zero_point: Tensor) -> Tensor:  # noqa: ARG002
        shared, numbers = self.granularity.shared(x.dim()), x.detach().float()
        low, high = numbers.amin(shared, keepdim=True), numbers.amax(shared, keepdim=True)
        return fake_quantized(x, *affine_parameters(low, high, grid), grid)

    def description(self) -> dict[str, Any]:
        return {"form": "dynamic", **_described(self.granularity)}


@dataclass(frozen=True)
class Log2(Form):
    """Powers of two 1, 1/2, 1/4, ... and 0, which is the largest integer, as those of a `Log2Quantizer`; G is 1.

    The scale and the zero point that a network stores are not read.
    """

    def fake_quantized(self, x: Tensor, grid: Grid, scale: Tensor, zero_point: Tensor) -> Tensor:  # noqa: ARG002
        values = self.values(self.integers(x, grid), grid).to(x.dtype)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return values
        exponents = -x.detach().float().log2()
        return passing_through(x, values, (exponents > -0.5) & (exponents < grid.high - 0.5))

    @staticmethod
    def integers(x: Tensor, grid: Grid) -> Tensor:
        """n = clamp(round(-log2 x), low, high), int32, the shape of x; numbers that are not positive have the last."""
        return (-x.detach().float().clamp(min=0).log2()).round().clamp(grid.low, grid.high).to(torch.int32)

    @staticmethod
    def values(integers: Tensor, grid: Grid) -> Tensor:
        """2^-n, and 0 of the largest integer, float32."""
        table = [2.0**-n for n in range(grid.high)] + [0.0]
        return torch.tensor(table, device=integers.device)[integers.long()]

    def description(self) -> dict[str, Any]:
        return {"form": "log2"}


WHOLE = Static(PerTensor())
"""The form with one grid for every input, which integer arithmetic needs."""
GRANULARITIES: Mapping[str, type[Granularity]] = {
    kind.__name__: kind for kind in (PerTensor, PerInputChannel, PerToken, PerParts)
}
"""Granularities of inputs by their names in files."""
FORMS: Mapping[str, type[Static | Dynamic]] = {"static": Static, "dynamic": Dynamic}
"""Forms that have a granularity, by their names in files."""


def described_form(description: Mapping[str, Any]) -> Form:
    """The form whose `description` this is.

    Raises:
        KeyError, TypeError: it describes none.
    """
    if description["form"] == "log2":
        return Log2()
    return FORMS[description["form"]](GRANULARITIES[description["granularity"]](**description["of"]))


def _described(granularity: Granularity) -> dict[str, Any]:
    return {"granularity": type(granularity).__name__, "of": asdict(granularity)}
