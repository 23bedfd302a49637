"""Layers that compute with quantized operands."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from ptq_diffusion.network.quantizers import LayerQuantizers


class QuantizedLayer(nn.Module, ABC):
    """A layer whose weight was quantized once and whose input is quantized at every call; None leaves an operand float.

    Attributes:
        weight: on its grid.
        bias: float, or None.
        instead: a weight and a bias to compute with in place of these, see `rescaled`; None outside of it.
        channels: the dimension of its output that channels are.

    Args:
        layer: the float layer; it is not changed.
        quantizers: frozen.
    """

    weight: Tensor
    bias: Tensor | None
    channels: ClassVar[int]

    def __init__(self, layer: nn.Conv2d | nn.Linear, quantizers: LayerQuantizers) -> None:
        super().__init__()
        weight, quantizer = layer.weight.detach(), quantizers.weight
        self.register_buffer("weight", weight.clone() if quantizer is None else quantizer(weight))
        self.bias = layer.bias
        self.instead: tuple[Tensor, Tensor] | None = None
        self.activation = nn.Identity() if quantizers.activation is None else quantizers.activation

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.activation(x))

    @property
    def operands(self) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias in use."""
        return self.instead or (self.weight, self.bias)

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """The layer's operation on an input that is quantized already."""


class QuantizedConv2d(QuantizedLayer):
    """`nn.Conv2d` with quantized operands."""

    channels = 1

    def __init__(self, layer: nn.Conv2d, quantizers: LayerQuantizers) -> None:
        super().__init__(layer, quantizers)
        if layer.padding_mode != "zeros":
            raise ValueError(f"expected a convolution with zero padding, got padding_mode={layer.padding_mode!r}")
        self.stride, self.padding = layer.stride, layer.padding
        self.dilation, self.groups = layer.dilation, layer.groups

    def compute(self, x: Tensor) -> Tensor:
        weight, bias = self.operands
        return nn.functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear` with quantized operands."""

    channels = -1

    def compute(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.operands)
