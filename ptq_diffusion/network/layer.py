"""Layers that compute with quantized operands."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ptq_diffusion.network.integers import StoredWeight
from ptq_diffusion.network.layer_settings import LayerSettings


class CurrentStep:
    """The step that a quantized network is asked about: the one thing that its layers share.

    Attributes:
        i: the row of the table.
        paired: whether the rows of the batch are pairs of guidance, those of the null condition first.
    """

    def __init__(self) -> None:
        self.i, self.paired = 0, False


class QuantizedLayer(nn.Module, ABC):
    """A layer with stored weights, whose input is quantized at every call by the settings of the current step.

    Attributes:
        weights: the copies of the weight, of which the settings choose one at every step.
        bias: float, (O,), or None.
        settings: by step.
        channels: the dimension of the output that holds the channels.

    Args:
        layer: the float layer, or a quantized one of the same kind, for its geometry; it is not changed, and may be on
            the meta device.
        weights: at least one.
        bias: (O,), or None.
        settings: of one step or of every step of a table.
        current: shared by all layers of a network.
    """

    bias: Tensor | None
    settings: LayerSettings
    channels: ClassVar[int]

    def __init__(
        self,
        layer: "nn.Conv2d | nn.Linear | QuantizedLayer",  # noqa: ARG002
        weights: Sequence[StoredWeight],
        bias: Tensor | None,
        settings: LayerSettings,
        current: CurrentStep,
    ) -> None:
        super().__init__()
        self.weights = nn.ModuleList(weights)
        self.register_buffer("bias", bias)
        self.settings, self.current = settings, current

    def forward(self, x: Tensor) -> Tensor:
        i = self.current.i
        return self.compute(self.settings(x, i, self.current.paired), *self.operands(i))

    def operands(self, i: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias at step i: the gain is in the weight's scales, the offset in the bias.

        They are float32; without a gain, a float weight and a bias are in the network's dtype.
        """
        weight = self.weights[self.settings.weight_copy(i)]
        assert isinstance(weight, StoredWeight)
        channels = self.settings.channels(i)
        if channels is None:
            return weight.values(), self.bias
        gain, offset = channels
        return weight.values(gain), offset if self.bias is None else self.bias * gain + offset

    def watch_input(self, see: Callable[[Tensor], object]) -> RemovableHandle:
        """Show the layer's input on its grid, as float32, at every call until the handle is removed."""
        return self.settings.register_forward_hook(lambda _, __, x_hat: see(x_hat.float()) and None)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's operation on an input that is quantized already, in the dtype of the input."""
        return self.operation(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @property
    def bordered(self) -> bool:
        """Whether zeros that are laid around the input enter the output."""
        return False

    @property
    def input_groups(self) -> int:
        """The number of groups of the input's channels, each of which is read by weights of its own."""
        return 1

    @abstractmethod
    def operation(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's operation on tensors of one dtype."""


class QuantizedConv2d(QuantizedLayer):
    """`nn.Conv2d` with quantized operands.

    Raises:
        ValueError: a convolution whose padding is not of zeros.
    """

    channels = 1
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def __init__(
        self,
        layer: "nn.Conv2d | QuantizedConv2d",
        weights: Sequence[StoredWeight],
        bias: Tensor | None,
        settings: LayerSettings,
        current: CurrentStep,
    ) -> None:
        super().__init__(layer, weights, bias, settings, current)
        if layer.padding_mode != "zeros":
            raise ValueError(f"expected a convolution with zero padding, got padding_mode={layer.padding_mode!r}")
        self.stride, self.padding, self.padding_mode = layer.stride, layer.padding, layer.padding_mode
        self.dilation, self.groups = layer.dilation, layer.groups

    @property
    def bordered(self) -> bool:
        return is_padded(self)

    @property
    def input_groups(self) -> int:
        return self.groups

    def operation(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def is_padded(layer: "nn.Conv2d | QuantizedConv2d") -> bool:
    """Whether zeros are laid around the input of a convolution."""
    return layer.padding != "valid" if isinstance(layer.padding, str) else any(layer.padding)


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear` with quantized operands."""

    channels = -1

    def operation(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)


def quantized_layer(
    layer: nn.Module,
    weights: Sequence[StoredWeight],
    bias: Tensor | None,
    settings: LayerSettings,
    current: CurrentStep,
) -> QuantizedLayer:
    """The quantized layer in place of a float one.

    Raises:
        TypeError: the layer is neither a Conv2d nor a Linear.
        ValueError: see `QuantizedConv2d`.
    """
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d(layer, weights, bias, settings, current)
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(layer, weights, bias, settings, current)
    raise TypeError(f"expected a Conv2d or Linear layer, got {type(layer).__name__}")


def require_shift(name: str, shift: Tensor, layer: QuantizedLayer, weight_shape: Sequence[int]) -> None:
    """Refuse a shift of other channels than those of a layer's input.

    Args:
        name: of the layer.
        shift: see `InputGrid`.
        layer: the layer.
        weight_shape: (O, I / G, ...) of its weight.

    Raises:
        ValueError: the message names the layer.
    """
    expected = (weight_shape[1] * layer.input_groups, *[1] * (len(weight_shape) - 2))
    if tuple(shift.shape) != expected:
        raise ValueError(
            f"expected a quantized layer {name} whose input has a shift of {tuple(shift.shape)}, which the correction "
            f"was fitted for, got one of {expected}; fit it for this network"
        )
