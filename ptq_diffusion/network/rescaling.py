"""Scales of quantized weights and biases of their own, such as every step may have."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_diffusion.network.layer import QuantizedLayer

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
    """y~ = gain y + offset of the output channels of a quantized layer.

    The gain multiplies the scales of its weight, the offset goes into its bias, so that neither costs an operation.

    Args:
        gain: (O,) float32.
        offset: (O,) float32.
    """

    gain: Tensor
    offset: Tensor

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
        """From this one at weight 0 to the other at 1."""
        return Rescaling(torch.lerp(self.gain, other.gain, weight), torch.lerp(self.offset, other.offset, weight))

    def nothing(self) -> "Rescaling":
        """The one of the same channels that changes nothing."""
        return Rescaling(torch.ones_like(self.gain), torch.zeros_like(self.offset))


@contextmanager
def rescaled(network: nn.Module, rescalings: Mapping[str, Rescaling]) -> Iterator[None]:
    """Within this context layers of a quantized network compute with other scales and biases.

    Raises:
        ValueError: the network has no quantized layer of a name, or one of another number of channels.
    """
    modules = dict(network.named_modules()) if rescalings else {}
    layers = {name: _layer(modules, name, rescaling) for name, rescaling in rescalings.items()}
    before = {name: layer.instead for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.instead = rescalings[name].operands(layer)
        yield
    finally:
        for name, layer in layers.items():
            layer.instead = before[name]


def _layer(modules: Mapping[str, nn.Module], name: str, rescaling: Rescaling) -> QuantizedLayer:
    layer = modules.get(name)
    if not isinstance(layer, QuantizedLayer) or len(layer.weight) != len(rescaling.gain):
        found = f"one of {len(layer.weight)}" if isinstance(layer, QuantizedLayer) else "no such layer"
        raise ValueError(
            f"expected a quantized layer {name} of {len(rescaling.gain)} output channels, which the correction was "
            f"fitted for, got {found}; fit it for this network"
        )
    return layer


def named(rescalings: Mapping[str, Rescaling]) -> dict[str, Tensor]:
    """Their tensors by layer/field."""
    fields = {f"{name}/gain": layer.gain for name, layer in rescalings.items()}
    return fields | {f"{name}/offset": layer.offset for name, layer in rescalings.items()}


def of_named(tensors: Mapping[str, Tensor]) -> dict[str, Rescaling]:
    """The inverse of `named`.

    Raises:
        ValueError: a layer lacks its gain or its offset, has something else, or they differ in length.
    """
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        layer, _, field = name.rpartition("/")
        parts[layer][field] = tensor
    for layer, fields in parts.items():
        if fields.keys() != {"gain", "offset"} or fields["gain"].shape != fields["offset"].shape:
            raise ValueError(
                f"expected a gain and an offset of one length for {layer}, got "
                + ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in fields.items())
            )
    return {layer: Rescaling(**fields) for layer, fields in parts.items()}


@contextmanager
def watching(network: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Within this context the outputs of some layers are shown; what `see` returns takes their place, if any."""
    with ExitStack() as hooks:
        for name in names:
            layer = network.get_submodule(name)
            hooks.enter_context(layer.register_forward_hook(lambda _, __, output, name=name: see(name, output)))
        yield
