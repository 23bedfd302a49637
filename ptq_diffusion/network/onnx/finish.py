"""The end of a network's graph at a step."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Finish:
    """Another output layer, and what is behind it.

    Args:
        values: weight and bias of the output layer in place of its own, float32, by `layer.weight` and `layer.bias`;
            empty leaves it.
        repair: from (q, x_t, features) to m~, or None for q itself.
    """

    values: Mapping[str, Tensor]
    repair: nn.Module | None
