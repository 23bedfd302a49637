"""Granularities: the groups of a tensor's numbers, each of which has a grid of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Granularity(ABC):
    """A division of a tensor into G groups, each with a scale and a zero point.

    Scales of a weight have the shape of its leading dimensions, with 1 where all share one: (1,) of the tensor, (O,)
    of the output channels, (1, I) of the input channels, (O, K) of K groups in every output channel. Those of inputs,
    whose first dimension is that of the images, are (G,).

    Class attributes:
        of_weights: whether a weight can be divided so.
        of_inputs: whether inputs can be.
    """

    of_weights: ClassVar[bool]
    of_inputs: ClassVar[bool]

    @abstractmethod
    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the scales of a tensor of this shape, which holds G numbers."""

    @abstractmethod
    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values of every group, (G, n), and how often each counts, (1, n) or (G, n).

        A group with fewer values than others repeats one that counts 0 times.
        """

    def of_input(self, channels: int, skip: int | None) -> "Granularity":  # noqa: ARG002
        """The granularity of the inputs of one layer; most do not depend on it.

        Args:
            channels: the dimension of the channels.
            skip: how many channels lie in front of those of a concatenated skip connection; None without one.
        """
        return self

    def shared(self, dimensions: int) -> tuple[int, ...]:  # noqa: ARG002
        """The dimensions of an input along which the numbers of one image share a grid.

        Args:
            dimensions: how many the input has.

        Raises:
            ValueError: it is no granularity of inputs.
        """
        raise ValueError(f"expected a granularity of inputs, got {self}, which only weights can have")

    def spread(self, parameter: Tensor, shape: Sequence[int]) -> Tensor:
        """A parameter of every group as a tensor that broadcasts against one of this shape.

        Args:
            parameter: of `parameter_shape(shape)`.
            shape: of the tensor that is quantized.

        Raises:
            ValueError: the parameter belongs to a tensor of another shape.
        """
        self.require(parameter, shape)
        return parameter.view(*parameter.shape, *[1] * (len(shape) - parameter.dim()))

    def require(self, parameter: Tensor, shape: Sequence[int]) -> None:
        """Refuse a parameter that belongs to a tensor of another shape.

        Raises:
            ValueError: the message gives both shapes.
        """
        if tuple(parameter.shape) != self.parameter_shape(shape):
            raise ValueError(
                f"expected scales of {self.parameter_shape(shape)} for a tensor of {tuple(shape)} with {self}, got "
                f"{tuple(parameter.shape)}; quantize it with the quantizer that observed it"
            )


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One grid for the whole tensor; its scale is (1,)."""

    of_weights, of_inputs = True, True

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:  # noqa: ARG002
        return (1,)

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.reshape(1, -1)
        return values, once(values)

    def shared(self, dimensions: int) -> tuple[int, ...]:
        return tuple(range(1, dimensions))


@dataclass(frozen=True)
class PerChannel(Granularity):
    """One grid for each slice of a weight along an axis, which is that of the output channels unless told otherwise.

    A weight (64, 32, 3, 3) has scales (64,) along axis 0 and (1, 32) along axis 1.

    Args:
        axis: 0 or above.

    Raises:
        ValueError: the axis is negative.
    """

    axis: int = 0
    of_weights, of_inputs = True, False

    def __post_init__(self) -> None:
        if self.axis < 0:
            raise ValueError(f"expected an axis of 0 (output channels) or above, got {self.axis}")

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if self.axis >= len(shape):
            raise ValueError(f"expected a tensor with an axis {self.axis}, got one of {tuple(shape)}")
        return (*[1] * self.axis, shape[self.axis])

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.movedim(self.axis, 0).flatten(1)
        return values, once(values)


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One grid for each run of input channels in each output channel of a weight, whatever the size of its kernel.

    A weight (64, 32, 3, 3) in groups of 8 has scales (64, 4), each of 72 numbers. Where the size does not divide the
    input channels, the last group holds the rest; one of all input channels is `PerChannel`.

    Args:
        size: input channels that share a grid.

    Raises:
        ValueError: the size is not positive.
    """

    size: int = 64
    of_weights, of_inputs = True, False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"expected groups of 1 input channel or more, got size={self.size}")

    def parameter_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) < 2:
            raise ValueError(f"expected a weight with output and input channels, got a tensor of {tuple(shape)}")
        return shape[0], -(-shape[1] // self.size)

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        (outputs, groups), inputs = self.parameter_shape(x.shape), x.shape[1]
        places = torch.arange(groups * self.size, device=x.device)
        filled = x.flatten(2) if x.dim() > 2 else x[..., None]
        values = filled[:, places.clamp(max=inputs - 1)].reshape(outputs * groups, -1)
        if groups * self.size == inputs:
            return values, once(values)
        counts = (places < inputs).to(values.dtype).view(1, groups, self.size, 1)
        return values, counts.expand(outputs, -1, -1, filled.shape[2]).reshape(outputs * groups, -1)

    def spread(self, parameter: Tensor, shape: Sequence[int]) -> Tensor:
        self.require(parameter, shape)
        by_channel = parameter.repeat_interleave(self.size, dim=1)[:, : shape[1]]
        return by_channel.view(*by_channel.shape, *[1] * (len(shape) - 2))


def once(values: Tensor) -> Tensor:
    """The counts of values that all count once, (1, n)."""
    return values.new_ones(1, values.shape[1])
