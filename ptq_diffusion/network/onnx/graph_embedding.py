"""Tables of embeddings in integers as nodes of graphs."""

import torch
from torch import Tensor, nn

from ptq_diffusion.network.integers import QuantizedWeight, StoredWeight


class GraphEmbedding(nn.Module):
    """Rows of a table: integers that are gathered, cast and multiplied by their scales, so that graphs hold integers.

    Args:
        table: (N, E).

    Raises:
        TypeError: a table that is not of integers alone.
    """

    centred: Tensor
    scale: Tensor

    def __init__(self, table: StoredWeight) -> None:
        super().__init__()
        if not isinstance(table, QuantizedWeight):
            raise TypeError(f"expected a table of packed integers, got {type(table).__name__}")
        # Numbers less a zero point of 8 bits take 9.
        self.register_buffer("centred", table.centred().to(torch.int8 if table.symmetric else torch.int16))
        self.register_buffer("scale", table.scales().expand(table.shape[0], -1).contiguous())

    def forward(self, indices: Tensor) -> Tensor:
        """The rows (..., E) of indices (...)."""
        return self.centred[indices].float() * self.scale[indices]
