"""Layers that multiply integers."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ptq_diffusion.network.backend import onednn
from ptq_diffusion.network.integers import QuantizedWeight, StoredWeight
from ptq_diffusion.network.layer import CurrentStep, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.step_settings import LayerSettings
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import Numbers

LOWEST, HIGHEST = -128, 127
"""The integers of int8."""


@dataclass(frozen=True)
class InputCodes:
    """u = clamp(round(x / s) + z', 0, 255) in uint8, whose code z stands for zero.

    The codes of a symmetric grid are shifted by 128, as the products read unsigned ones.

    Args:
        numbers: of the grid.
        zero: z, 0 to 255.
    """

    numbers: Numbers
    zero: int

    @classmethod
    def of(cls, numbers: Numbers, grid: Grid) -> "InputCodes":
        """The codes of a grid."""
        return cls(numbers, -LOWEST if grid.symmetric else -numbers.low)

    def __call__(self, x: Tensor) -> Tensor:
        """The codes of x, of its shape."""
        # In place, and through int8: torch converts to it several times faster than to uint8.
        integers = (x.float() * self.numbers.inverse).round_().clamp_(self.numbers.low, self.numbers.high)
        signed = integers.add_(self.zero + LOWEST).to(torch.int8)
        return signed.view(torch.uint8).bitwise_xor_(-LOWEST)


@dataclass(frozen=True)
class StepProduct:
    """All that the product of a layer at one step is made of.

    Args:
        codes: of the input.
        weights: packed parts, whose sum is the weight: one, or two where int8 does not hold it.
        scales: of the first part with the bias, gains and offsets included, then of the second.
    """

    codes: InputCodes
    weights: Sequence[Tensor]
    scales: Sequence[onednn.Scales]


class Kept:
    """Objects made of a layer's tensors when they are first asked for, which are neither copied nor pickled."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}

    def once(self, key: int, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """The object of a key, made now if there is none."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def __deepcopy__(self, memo: object) -> "Kept":
        return type(self)()

    def __reduce__(self) -> tuple[type["Kept"], tuple[()]]:
        return type(self), ()


class KeptByAll(Kept):
    """The same, which copies share: a copy of a network with other settings has the same weights.

    oneDNN's order of a weight is not a tensor that torch can copy or save.
    """

    def __deepcopy__(self, memo: object) -> "KeptByAll":
        return self


class IntegerLayer(QuantizedLayer):
    """A quantized layer whose product is one of 8-bit integers; float where its plan says that both operands are.

    Weights of fewer bits are stored in them and unpacked once.
    """

    def __init__(
        self,
        layer: QuantizedLayer,
        weights: Sequence[StoredWeight],
        bias: Tensor | None,
        settings: LayerSettings,
        current: CurrentStep,
    ) -> None:
        super().__init__(layer, weights, bias, settings, current)
        self._products, self._packed = Kept(), KeptByAll()

    def forward(self, x: Tensor) -> Tensor:
        i = self.current.i
        product: StepProduct | None = self._products.once(i, lambda: self._product_at(i))
        if product is None:
            return super().forward(x)
        codes = product.codes(x)
        first, *others = map(partial(self.multiplied, codes), product.weights, product.scales)
        return first.add_(others[0]) if others else first

    def watch_input(self, see: Callable[[Tensor], object]) -> RemovableHandle:
        return self.register_forward_hook(
            lambda _, inputs, __: see(self.settings(inputs[0].float(), self.current.i)) and None
        )

    @abstractmethod
    def packed(self, integers: Tensor) -> Tensor:
        """The integers of a weight, int8, in the order that its product reads them in."""

    @abstractmethod
    def multiplied(self, codes: Tensor, weight: Tensor, scales: onednn.Scales) -> Tensor:
        """The product of codes and a packed weight, float32."""

    def _product_at(self, i: int) -> StepProduct | None:
        place, grid, numbers = self.settings.weight_copy(i), self.settings.grid(i), self.settings.numbers(i)
        weight = self.weights[place]
        if grid is None or numbers is None or not isinstance(weight, QuantizedWeight):
            return None
        parts = self._packed.once(place, lambda: [self.packed(part) for part in signed_parts(weight.centred())])
        scale, bias, channels = weight.scale.expand(weight.shape[0]), self.bias, self.settings.channels(i)
        if channels is not None:
            gain, offset = channels
            scale, bias = scale * gain, offset if bias is None else bias * gain + offset
        codes = InputCodes.of(numbers, grid)
        scales = [onednn.Scales(numbers.scale, codes.zero, scale.contiguous(), each) for each in (bias, None)]
        return StepProduct(codes, parts, scales[: len(parts)])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IntegerLayer":
        self._products, self._packed = Kept(), KeptByAll()
        return super()._apply(fn, recurse)


class IntegerConv2d(IntegerLayer, QuantizedConv2d):
    """A convolution of 8-bit integers, whose output has its channels innermost in memory."""

    def packed(self, integers: Tensor) -> Tensor:
        return onednn.packed_convolution(integers, self._geometry())

    def multiplied(self, codes: Tensor, weight: Tensor, scales: onednn.Scales) -> Tensor:
        return onednn.convolution(codes, weight, scales, self._geometry())

    def _geometry(self) -> onednn.Geometry:
        assert not isinstance(self.padding, str), "the backend has refused it"
        return onednn.Geometry(self.stride, self.padding, self.dilation, self.groups)


class IntegerLinear(IntegerLayer, QuantizedLinear):
    """A linear layer of 8-bit integers."""

    def packed(self, integers: Tensor) -> Tensor:
        return onednn.packed_linear(integers)

    def multiplied(self, codes: Tensor, weight: Tensor, scales: onednn.Scales) -> Tensor:
        return onednn.linear(codes, weight, scales)


def signed_parts(centred: Tensor) -> list[Tensor]:
    """Integers n - z as int8 parts that add up to them: one, or two of an affine grid that is far off its middle.

    Args:
        centred: float32, of at most 9 bits.
    """
    first = centred.clamp(LOWEST, HIGHEST)
    parts = [first] if torch.equal(first, centred) else [first, centred - first]
    return [part.to(torch.int8) for part in parts]
