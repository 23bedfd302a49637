"""Layers that multiply integers."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ptq_diffusion.network.backend import onednn
from ptq_diffusion.network.backend.input_codes import InputCodes
from ptq_diffusion.network.equalising import summed_by_output
from ptq_diffusion.network.integers import QuantizedWeight, StoredWeight
from ptq_diffusion.network.layer import CurrentStep, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.layer_settings import LayerSettings

LOWEST, HIGHEST = -128, 127
"""The integers of int8."""


@dataclass(frozen=True)
class StepProduct:
    """All that the product of a layer at one step is made of, but for its weight.

    Args:
        place: of the weight's copy.
        codes: of the input.
        scales: of the first part of the weight with the bias, gains and offsets included, then of the second, if any.
    """

    place: int
    codes: InputCodes
    scales: Sequence[onednn.Scales]


@dataclass(frozen=True)
class Sums:
    """Sums over the integers of one part of a weight by output channel.

    Args:
        total: sum of n, (O,) float64.
        power: sum of n^2, (O,) float64.
    """

    total: Tensor
    power: Tensor

    @classmethod
    def of(cls, part: Tensor) -> "Sums":
        """The sums of a part, (O, ...) int8."""
        rows = part.flatten(1).double()
        return cls(rows.sum(1), rows.square().sum(1))

    def small(self, codes: InputCodes) -> bool:
        """Whether z sum n is within a few deviations of sum u n over random codes: taking it off costs no digit."""
        return bool(((codes.zero * self.total).abs() <= 2 * codes.highest * self.power.sqrt()).all())


class Cache:
    """Objects made of a layer's parts when they are first asked for, which are neither copied nor pickled."""

    def __init__(self) -> None:
        self._entries: dict[object, tuple[Sequence[object], Any]] = {}

    def once(self, key: object, sources: Sequence[object], make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """The object of a key, made now if there is none.

        Args:
            key: tells it from others that are made of the same parts.
            sources: the parts that it is made of: other ones in their places have an object of their own.
            make: makes it.
        """
        # An entry holds its parts, so that no other gets the identity of one.
        whole = key, *map(id, sources)
        if whole not in self._entries:
            self._entries[whole] = sources, make()
        return self._entries[whole][1]

    def __deepcopy__(self, memo: object) -> "Cache":
        return type(self)()

    def __reduce__(self) -> tuple[type["Cache"], tuple[()]]:
        return type(self), ()


class SharedCache(Cache):
    """The same, which copies share: a copy of a network with other settings has the same weights.

    oneDNN's order of a weight is not a tensor that torch can copy or save.
    """

    def __deepcopy__(self, memo: object) -> "SharedCache":
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
        self._products, self._packed = Cache(), SharedCache()

    def forward(self, x: Tensor) -> Tensor:
        i = self.current.i
        sources = self.weights[self.settings.weight_copy(i)], self.settings, self.bias
        product: StepProduct | None = self._products.once(i, sources, lambda: self._product_at(i))
        if product is None:
            return super().forward(x)
        codes = product.codes(self.settings.shifted(x, i))
        key = product.place, product.codes.border, self.order(codes)
        weights = self._packed.once(
            key, sources[:1], lambda: [self.packed(part, product, codes) for part in self._parts(product)]
        )
        first, *others = map(partial(self.multiplied, product, codes), weights, product.scales)
        return first.add_(others[0]) if others else first

    def watch_input(self, see: Callable[[Tensor], object]) -> RemovableHandle:
        return self.register_forward_hook(
            lambda _, inputs, __: see(self.settings(inputs[0].float(), self.current.i)) and None
        )

    def order(self, codes: Tensor) -> object:  # noqa: ARG002
        """The sizes of the input that the best order of a weight depends on."""
        return None

    @abstractmethod
    def packed(self, integers: Tensor, product: StepProduct, codes: Tensor) -> Tensor:
        """The integers of a weight, int8, in the order that its product with such codes reads them in."""

    @abstractmethod
    def multiplied(self, product: StepProduct, codes: Tensor, weight: Tensor, scales: onednn.Scales) -> Tensor:
        """The product of codes and a packed weight, float32."""

    def border(self, codes: InputCodes, sums: Sequence[Sums]) -> tuple[int, int] | None:  # noqa: ARG002
        """The border of zeros around the input that lets the product leave z to the bias; None where it does not."""
        return None

    def _product_at(self, i: int) -> StepProduct | None:
        place, numbers = self.settings.weight_copy(i), self.settings.numbers(i)
        weight = self.weights[place]
        if numbers is None or not isinstance(weight, QuantizedWeight):
            return None
        scale, bias, channels = weight.scale.expand(weight.shape[0]), self.bias, self.settings.channels(i)
        if channels is not None:
            gain, offset = channels
            scale, bias = scale * gain, offset if bias is None else bias * gain + offset
        if (shift := self.settings.shift_at(i)) is not None:
            constant = (scale.double() * summed_by_output(weight.centred(), shift)).float()
            bias = constant if bias is None else bias + constant
        sums: list[Sums] = self._packed.once(place, [weight], lambda: [Sums.of(part) for part in signed_parts(weight)])
        codes = InputCodes(numbers)
        scales = [onednn.Scales(numbers.scale, codes.zero, scale.contiguous(), each) for each in (bias, None)]
        scales, border = scales[: len(sums)], self.border(codes, sums)
        if border is None:
            return StepProduct(place, codes, scales)
        scales = [each.without_zero(part.total) for each, part in zip(scales, sums, strict=True)]
        return StepProduct(place, replace(codes, border=border), scales)

    def _parts(self, product: StepProduct) -> list[Tensor]:
        weight = self.weights[product.place]
        assert isinstance(weight, QuantizedWeight)
        return signed_parts(weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IntegerLayer":
        self._products, self._packed = Cache(), SharedCache()
        return super()._apply(fn, recurse)


class IntegerConv2d(IntegerLayer, QuantizedConv2d):
    """A convolution of 8-bit integers, whose output has its channels innermost in memory."""

    def order(self, codes: Tensor) -> object:
        return codes.shape[2:]

    def packed(self, integers: Tensor, product: StepProduct, codes: Tensor) -> Tensor:
        return onednn.packed_convolution(integers, self._geometry(product), codes.shape)

    def multiplied(self, product: StepProduct, codes: Tensor, weight: Tensor, scales: onednn.Scales) -> Tensor:
        return onednn.convolution(codes, weight, scales, self._geometry(product))

    def border(self, codes: InputCodes, sums: Sequence[Sums]) -> tuple[int, int] | None:
        # oneDNN sums the weights once more at every call where z is told; a border costs less.
        return self._padding if all(part.small(codes) for part in sums) else None

    @property
    def _padding(self) -> tuple[int, int]:
        assert not isinstance(self.padding, str), "the backend has refused it"
        return self.padding[0], self.padding[1]

    def _geometry(self, product: StepProduct) -> onednn.Geometry:
        padding = self._padding if product.codes.border is None else (0, 0)
        return onednn.Geometry(self.stride, padding, self.dilation, self.groups)


class IntegerLinear(IntegerLayer, QuantizedLinear):
    """A linear layer of 8-bit integers."""

    def packed(self, integers: Tensor, product: StepProduct, codes: Tensor) -> Tensor:  # noqa: ARG002
        return onednn.packed_linear(integers)

    def multiplied(self, _: StepProduct, codes: Tensor, weight: Tensor, scales: onednn.Scales) -> Tensor:
        return onednn.linear(codes, weight, scales)


def signed_parts(weight: QuantizedWeight) -> list[Tensor]:
    """The integers n - z of a weight as int8 parts that add up to them.

    There is one, or there are two of an affine grid of 8 bits that is far off its middle.
    """
    centred = weight.centred()
    first = centred.clamp(LOWEST, HIGHEST)
    parts = [first] if torch.equal(first, centred) else [first, centred - first]
    return [part.to(torch.int8) for part in parts]
