"""Where a network can be quantized."""

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a site computes."""

    CONV2D = "conv2d"
    LINEAR = "linear"


class Role(Enum):
    """The part that a site plays; the first and the last layer often get more bits."""

    FIRST = "first"
    INNER = "inner"
    LAST = "last"


@dataclass(frozen=True)
class Site:
    """A layer with a weight.

    Args:
        name: its dotted name within the network.
        kind: convolution or linear.
        role: first, inner or last.
        macs: multiply-accumulates of one forward of one sample.
        weight_shape: the shape of its weight, output channels first.
    """

    name: str
    kind: Kind
    role: Role
    macs: int
    weight_shape: tuple[int, ...]
