"""Tables of embeddings of a quantized network: packed integers with scales in place of `nn.Embedding`."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ptq_diffusion.network.integers import QuantizedWeight, StoredWeight, require_of_weights, stored_weight
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.quantizer import AffineQuantizer, Quantizer


class QuantizedEmbedding(nn.Module):
    """`nn.Embedding` whose table is stored in integers.

    Args:
        table: (N, E); its rows are what a weight's output channels are.
        dtype: of the rows that it gives.
    """

    def __init__(self, table: StoredWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self.dtype = table, dtype

    def forward(self, indices: Tensor) -> Tensor:
        """The rows (..., E) of indices (...)."""
        return nn.functional.embedding(indices, self.table.values()).to(self.dtype)


def embeddings(network: nn.Module) -> dict[str, nn.Embedding]:
    """The float tables of a network by name.

    Raises:
        ValueError: a table whose rows are scaled as they are read.
    """
    tables = {name: module for name, module in network.named_modules() if isinstance(module, nn.Embedding)}
    if scaled := [name for name, table in tables.items() if table.max_norm is not None]:
        raise ValueError(
            f"expected tables of embeddings whose rows are read as they are, got max_norm at {scaled[0]}; set "
            "quantizer.embedding.bits=32"
        )
    return tables


def quantized_embeddings(network: nn.Module) -> dict[str, QuantizedEmbedding]:
    """The tables in integers of a network by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantizedEmbedding)}


def quantized_tables(network: nn.Module, bits: int, make: Callable[[int], Quantizer]) -> dict[str, QuantizedEmbedding]:
    """The tables in integers of a float network, by name; every row is rounded to nearest, whether it is used or not.

    Args:
        network: float; it is not changed.
        bits: of their numbers, 2 to 8; 32 leaves all of them in float, and none is given.
        make: from a bitwidth to a fresh quantizer of a weight.

    Raises:
        TypeError: a kind of quantizer whose integers cannot be stored.
        ValueError: a granularity that a table does not have, or see `embeddings`.
    """
    tables: dict[str, QuantizedEmbedding] = {}
    if bits == FLOAT_BITS:
        return tables
    for name, module in embeddings(network).items():
        weight, quantizer = module.weight.detach(), make(bits)
        require_of_weights(quantizer)
        assert isinstance(quantizer, AffineQuantizer)
        quantizer.observe(weight)
        quantizer.freeze()
        tables[name] = QuantizedEmbedding(QuantizedWeight.of(weight, quantizer), weight.dtype)
    return tables


def table_kinds(network: nn.Module) -> dict[str, dict[str, int | bool]]:
    """The bits of a network's tables in integers and whether their grids are symmetric, by name."""
    tables = {name: embedding.table for name, embedding in quantized_embeddings(network).items()}
    return {name: {"bits": table.bits, "symmetric": table.symmetric} for name, table in tables.items()}


def stored_tables(
    network: nn.Module,
    kinds: Mapping[str, Mapping[str, int | bool]],
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> dict[str, QuantizedEmbedding]:
    """The tables in integers of a network, by name, from what was saved.

    Args:
        network: float, of any weights.
        kinds: see `table_kinds`.
        tensors: of `StoredWeight.tensors`, by the table's name, a slash and their own.
        dtype: of the network.

    Raises:
        KeyError: a tensor is missing.
        ValueError: there is no such table, or see `stored_weight`.
    """
    tables, float_tables = {}, embeddings(network)
    for name, kind in kinds.items():
        if name not in float_tables:
            raise ValueError(f"expected tables of embeddings of the network that is described, it has no {name}")
        shape = float_tables[name].num_embeddings, float_tables[name].embedding_dim
        parts = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        weight = stored_weight(parts, int(kind["bits"]), bool(kind["symmetric"]), shape)
        tables[name] = QuantizedEmbedding(weight, dtype)
    return tables
