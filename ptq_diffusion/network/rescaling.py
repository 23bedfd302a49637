"""Scales of quantized weights, biases and input grids of their own, such as every step may have."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_diffusion.network.input_grid import InputGrid
from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.quantizer import AffineQuantizer

CONSTANT = 1e-4
"""A channel whose standard deviation is below this share of its root mean square says only its mean."""
LARGEST_GAIN = 4.0
"""Beyond it, or below its inverse, two deviations are not of one channel at two precisions, and are not matched."""


@dataclass(frozen=True)
class Spread:
    """Of a layer's output channels, over images and positions.

    Args:
        mean: (O,) float64.
        deviation: (O,) float64, the standard deviation.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, output: Tensor, channels: int) -> "Spread":
        """Of an output, (B, ...), whose channels are one of its other dimensions."""
        # (B, O, N): along rows means are several times faster than over all other dimensions at once.
        rows = output.movedim(channels, 1)
        rows = rows.reshape(*rows.shape[:2], -1)
        mean = rows.mean(-1).mean(0)
        deviation = (rows - mean[:, None]).square_().mean(-1).mean(0).sqrt()
        return cls(mean.cpu().double(), deviation.cpu().double())  # Not every device has float64.

    @property
    def varies(self) -> Tensor:
        """Whether a channel is more than its mean, (O,) bool."""
        return self.deviation > CONSTANT * (self.mean.square() + self.deviation.square()).sqrt()


@dataclass(frozen=True)
class Rescaling:
    """y~ = gain y + offset of the output channels of a quantized layer, whose input may have another grid too.

    The gain multiplies the scales of its weight, the offset goes into its bias, so that neither costs an operation.

    Args:
        gain: (O,) float32.
        offset: (O,) float32.
        input_grid: None leaves the input's as it was calibrated.
    """

    gain: Tensor
    offset: Tensor
    input_grid: InputGrid | None = None

    @classmethod
    def between(cls, source: Spread, target: Spread) -> "Rescaling":
        """The one that gives every channel the target's mean and, where both vary alike, its standard deviation."""
        ratio = target.deviation / source.deviation
        alike = source.varies & target.varies & (ratio < LARGEST_GAIN) & (ratio > 1 / LARGEST_GAIN)
        gain = torch.where(alike, ratio, 1.0)
        return cls(gain.float(), (target.mean - gain * source.mean).float())

    def of(self, output: Tensor, channels: int) -> Tensor:
        """y~, of the shape of y, whose channels are one of its dimensions."""
        shape = [1] * output.ndim
        shape[channels] = -1
        return output * self.gain.to(output).view(shape) + self.offset.to(output).view(shape)

    def operands(self, layer: QuantizedLayer) -> tuple[Tensor, Tensor]:
        """The layer's weight and bias with this gain and offset."""
        gain, offset = self.gain.to(layer.weight), self.offset.to(layer.weight)
        weight = layer.weight * gain.view(-1, *[1] * (layer.weight.ndim - 1))
        return weight, offset if layer.bias is None else layer.bias * gain + offset

    def lerp(self, other: "Rescaling", weight: float) -> "Rescaling":
        """From this one at weight 0 to the other at 1; where only one has a grid, with that."""
        grids = self.input_grid, other.input_grid
        both = grids[0].lerp(grids[1], weight) if grids[0] and grids[1] else grids[0] or grids[1]
        return Rescaling(torch.lerp(self.gain, other.gain, weight), torch.lerp(self.offset, other.offset, weight), both)

    def nothing(self) -> "Rescaling":
        """The one of the same channels that changes nothing."""
        return Rescaling(torch.ones_like(self.gain), torch.zeros_like(self.offset))

    def tensors(self) -> dict[str, Tensor]:
        """By field."""
        grid = {} if self.input_grid is None else vars(self.input_grid)
        return {"gain": self.gain, "offset": self.offset, **grid}

    @classmethod
    def of_tensors(cls, fields: Mapping[str, Tensor]) -> "Rescaling":
        """The inverse of `tensors`.

        Raises:
            ValueError: a field is missing, unknown or of another shape.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in fields.items()}
        length = shapes.get("gain", ())
        without = {"gain": length, "offset": length}
        if len(length) != 1 or shapes not in (without, without | {"scale": (1,), "zero_point": (1,)}):
            raise ValueError(
                "expected a gain and an offset of one length, and a scale and a zero_point of one number or none, got "
                + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            )
        grid = InputGrid(fields["scale"], fields["zero_point"]) if "scale" in fields else None
        return cls(fields["gain"], fields["offset"], grid)


@contextmanager
def rescaled(network: nn.Module, rescalings: Mapping[str, Rescaling]) -> Iterator[None]:
    """Within this context layers of a quantized network compute with other scales, biases and grids of their inputs.

    Raises:
        ValueError: the network has no quantized layer of a name, or one of another number of channels or another input.
    """
    modules = dict(network.named_modules()) if rescalings else {}
    layers = {name: _layer(modules, name, rescaling) for name, rescaling in rescalings.items()}
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(setattr, layer, "instead", layer.instead)
            layer.instead = rescalings[name].operands(layer)
            if grid := rescalings[name].input_grid:
                quantizer = _quantizer(layer, name)
                stack.callback(setattr, quantizer, "instead", quantizer.instead)
                quantizer.instead = grid.numbers(quantizer)
        yield


def _layer(modules: Mapping[str, nn.Module], name: str, rescaling: Rescaling) -> QuantizedLayer:
    layer = modules.get(name)
    if not isinstance(layer, QuantizedLayer) or len(layer.weight) != len(rescaling.gain):
        found = f"one of {len(layer.weight)}" if isinstance(layer, QuantizedLayer) else "no such layer"
        raise ValueError(
            f"expected a quantized layer {name} of {len(rescaling.gain)} output channels, which the correction was "
            f"fitted for, got {found}; fit it for this network"
        )
    return layer


def _quantizer(layer: QuantizedLayer, name: str) -> AffineQuantizer:
    if not isinstance(layer.activation, AffineQuantizer):
        raise ValueError(
            f"expected {name} to quantize its input by an AffineQuantizer, which the correction was fitted for, got "
            f"{type(layer.activation).__name__}; fit it for this network"
        )
    return layer.activation


def named(rescalings: Mapping[str, Rescaling]) -> dict[str, Tensor]:
    """Their tensors by layer/field."""
    return {f"{name}/{field}": tensor for name, own in rescalings.items() for field, tensor in own.tensors().items()}


def of_named(tensors: Mapping[str, Tensor]) -> dict[str, Rescaling]:
    """The inverse of `named`.

    Raises:
        ValueError: a field is missing, unknown or of another shape.
    """
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        layer, _, field = name.rpartition("/")
        parts[layer][field] = tensor
    return {layer: Rescaling.of_tensors(fields) for layer, fields in parts.items()}


@contextmanager
def watching(network: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Within this context the outputs of some layers are shown; what `see` returns takes their place, if any."""
    with ExitStack() as hooks:
        for name in names:
            layer = network.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(lambda _, __, output, name=name: see(name, output)))
        yield
