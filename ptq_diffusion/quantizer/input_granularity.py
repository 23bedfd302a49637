"""Granularities of inputs, whose first dimension is that of the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ptq_diffusion.quantizer.granularity import Granularity, PerTensor, once

IMAGES = 1
"""The axis of the channels of images."""


@dataclass(frozen=True)
class _AlongChannels(Granularity):
    """Groups of an input that are told by the axis of its channels.

    Args:
        axis: of the channels: 1 in images, -1 in tokens; None is that of the layer whose inputs they are.
    """

    axis: int | None = None
    of_weights, of_inputs = False, True

    @property
    def _axis(self) -> int:
        return IMAGES if self.axis is None else self.axis

    def of_input(self, channels: int, skip: int | None) -> Self:  # noqa: ARG002
        return replace(self, axis=_axis_of_layer(self.axis, channels))


@dataclass(frozen=True)
class PerInputChannel(_AlongChannels):
    """One grid for each channel of an input, over all images and positions; scales are (C,)."""

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[self._axis],)

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.movedim(self._axis, 0).flatten(1)
        return values, once(values)

    def shared(self, dimensions: int) -> tuple[int, ...]:
        return tuple(place for place in range(1, dimensions) if place != self._axis % dimensions)

    def spread(self, parameter: Tensor, shape: Sequence[int]) -> Tensor:
        self.require(parameter, shape)
        place = self._axis % len(shape)
        return parameter.view(*[1] * place, -1, *[1] * (len(shape) - place - 1))


@dataclass(frozen=True)
class PerToken(_AlongChannels):
    """One grid for all channels at each position of each image: a token of a transformer, a pixel of a UNet.

    There are other groups for every image, so that no grid can be found beforehand.
    """

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (math.prod(shape) // shape[self._axis],)

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.movedim(self._axis, -1).flatten(0, -2)
        return values, once(values)

    def shared(self, dimensions: int) -> tuple[int, ...]:
        return (self._axis % dimensions,)

    def spread(self, parameter: Tensor, shape: Sequence[int]) -> Tensor:
        self.require(parameter, shape)
        place = self._axis % len(shape)
        return parameter.view(*shape[:place], 1, *shape[place + 1 :])


@dataclass(frozen=True)
class PerSkip(PerTensor):
    """One grid for the whole input, and two in layers that read a concatenated skip connection: see `PerParts`.

    The shortcut-splitting quantization of Q-Diffusion, Li et al., ICCV 2023, arXiv 2302.04304, of activations.
    """

    of_weights, of_inputs = False, True

    def of_input(self, channels: int, skip: int | None) -> Granularity:
        return PerTensor() if skip is None else PerParts(skip, channels)


@dataclass(frozen=True)
class PerParts(Granularity):
    """One grid for the first channels of an input and one for the others; scales are (2,).

    Args:
        first: how many channels come first.
        axis: of the channels: 1 in images, -1 in tokens.
    """

    first: int
    axis: int
    of_weights, of_inputs = False, True

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if not 0 < self.first < shape[self.axis]:
            raise ValueError(f"expected an input of more than {self.first} channels, got one of {tuple(shape)}")
        return (2,)

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.parameter_shape(x.shape)
        channels = x.movedim(self.axis, 0)
        parts = [channels[: self.first].flatten(), channels[self.first :].flatten()]
        width = max(map(len, parts))
        values = [torch.cat([part, part[:1].expand(width - len(part))]) for part in parts]
        counts = [(torch.arange(width, device=x.device) < len(part)).to(x.dtype) for part in parts]
        return torch.stack(values), torch.stack(counts)

    def shared(self, dimensions: int) -> tuple[int, ...]:  # noqa: ARG002
        raise ValueError(
            f"expected a granularity of a dynamic quantizer, which cannot split skip connections, got {self}; choose "
            "PerTensor, PerToken or PerInputChannel"
        )

    def spread(self, parameter: Tensor, shape: Sequence[int]) -> Tensor:
        self.require(parameter, shape)
        place, rest = self.axis % len(shape), shape[self.axis] - self.first
        by_channel = torch.cat([parameter[:1].expand(self.first), parameter[1:].expand(rest)])
        return by_channel.view(*[1] * place, -1, *[1] * (len(shape) - place - 1))


@dataclass(frozen=True)
class PerImage(Granularity):
    """The groups of another granularity in each image of one tensor; scales have its dimensions, 1 where shared.

    Args:
        within: the granularity of an image's numbers.
    """

    within: Granularity
    of_weights, of_inputs = False, False

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        shared = self.within.shared(len(shape))
        return tuple(1 if place in shared else size for place, size in enumerate(shape))

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.within.shared(x.dim())
        groups = [place for place in range(x.dim()) if place not in shared]
        values = x.permute(*groups, *shared).reshape(math.prod(x.shape[place] for place in groups), -1)
        return values, once(values)


def _axis_of_layer(axis: int | None, channels: int) -> int:
    """The axis of the channels of a layer's inputs.

    Raises:
        ValueError: another axis was asked for.
    """
    if axis not in (None, channels):
        raise ValueError(
            f"expected the axis of the channels of each layer's inputs, 1 of images and -1 of tokens, got {axis} for "
            f"inputs with {channels}; leave out quantizer.activation.granularity.axis"
        )
    return channels
