"""Layers that multiply integers."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, device
from torch.utils.hooks import RemovableHandle

from ptq_diffusion.network.backend.cache import Cache, SharedCache
from ptq_diffusion.network.backend.devices import products_on
from ptq_diffusion.network.backend.products import Geometry, Operands, Product
from ptq_diffusion.network.equalising import summed_by_output
from ptq_diffusion.network.integers import QuantizedWeight, StoredWeight
from ptq_diffusion.network.layer import CurrentStep, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.layer_settings import LayerSettings, require_pairs


@dataclass(frozen=True)
class StepProducts:
    """The products of a layer at one step.

    Args:
        of_input: of its input with the weight.
        of_difference: of differences between the rows of guidance; None where every row has the first.
    """

    of_input: Product
    of_difference: Product | None


class IntegerLayer(QuantizedLayer):
    """A quantized layer whose product is one of 8-bit integers; float where its plan says that both operands are.

    Weights below 8 bits stay packed at their own width and are unpacked once.
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
        products: StepProducts | None = self._products.once(
            (i, x.device), sources, lambda: self._products_at(i, x.device)
        )
        if products is None:
            return super().forward(x)
        if products.of_difference is None:
            return products.of_input(self.settings.shifted(x, i))
        require_pairs(x, i, self.current.paired)
        null, conditional = self.settings.equalised(x).chunk(2)
        base = products.of_input(self.settings.less_shift(conditional, i))
        return torch.cat([base + products.of_difference(null.float() - conditional.float()), base])

    def watch_input(self, see: Callable[[Tensor], object]) -> RemovableHandle:
        return self.register_forward_hook(
            lambda _, inputs, __: see(self.settings(inputs[0].float(), self.current.i, self.current.paired)) and None
        )

    @property
    @abstractmethod
    def geometry(self) -> Geometry | None:
        """The geometry of a convolution; None of a linear layer."""

    def _products_at(self, i: int, on: device) -> StepProducts | None:
        numbers, weight = self.settings.numbers(i), self.weights[self.settings.weight_copy(i)]
        if numbers is None or not isinstance(weight, QuantizedWeight):
            return None
        scale, bias, channels = weight.scale.expand(weight.shape[0]), self.bias, self.settings.channels(i)
        if channels is not None:
            gain, offset = channels
            scale, bias = scale * gain, offset if bias is None else bias * gain + offset
        if (shift := self.settings.shift_at(i)) is not None:
            constant = (scale.double() * summed_by_output(weight.centred(), shift)).float()
            bias = constant if bias is None else bias + constant
        operands, make = Operands(weight, numbers, scale, bias, self.geometry, self._packed), products_on(on).product
        of_pairs = self.settings.difference_numbers(i)
        # The bias is that of the row to whose output the product of the difference is added.
        of_difference = None if of_pairs is None else make(replace(operands, numbers=of_pairs, bias=None))
        return StepProducts(make(operands), of_difference)

    def forget(self) -> None:
        """Drop the products that were made of the stored numbers, which are made again when they are needed."""
        self._products, self._packed = Cache(), SharedCache()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "IntegerLayer":
        self.forget()
        return super()._apply(fn, recurse)


class IntegerConv2d(IntegerLayer, QuantizedConv2d):
    """A convolution of 8-bit integers."""

    @property
    def geometry(self) -> Geometry:
        assert not isinstance(self.padding, str), "the backend has refused it"
        return Geometry(self.stride, self.padding, self.dilation, self.groups)


class IntegerLinear(IntegerLayer, QuantizedLinear):
    """A linear layer of 8-bit integers."""

    @property
    def geometry(self) -> None:
        return None
