"""Channels and sizes of states from the configurations of networks."""

from collections.abc import Mapping
from typing import Any

LARGEST = 2**14
"""Pixels of a side: a larger number is an error of writing."""


def require_channels(config: Mapping[str, Any]) -> int:
    """The channels of a state, of a network that has as many of its output, or twice as many with a variance.

    Raises:
        ValueError: the network reads other channels beside the state, or its output is of another number.
    """
    inputs, outputs = config["in_channels"], config["out_channels"] or config["in_channels"]
    if outputs in (inputs, 2 * inputs):
        return int(inputs)
    if inputs > outputs:
        raise ValueError(
            f"expected a network that reads the state alone, got one of {inputs} input and {outputs} output channels, "
            "which is conditioned by an image or a mask beside the state; use a model without it"
        )
    raise ValueError(
        f"expected as many output channels as the {inputs} input channels, or twice as many, got {outputs}; use a "
        "network of the state's channels"
    )


def sides(config: Mapping[str, Any], kind: str) -> tuple[int, int]:
    """Height and width of a state, the `sample_size` of a configuration.

    Args:
        config: of the network.
        kind: the name of its class, for messages.

    Raises:
        ValueError: there is none, or it is no size.
    """
    size = config["sample_size"]
    if size is None:
        raise ValueError(f"expected a {kind} with a sample_size; set sample_size in its config.json")
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= LARGEST for side in pair):
        raise ValueError(
            f"expected a sample_size of one or two whole numbers of 1 to {LARGEST}, got {size!r}; set sample_size in "
            "the network's config.json"
        )
    height, width = pair
    return height, width
