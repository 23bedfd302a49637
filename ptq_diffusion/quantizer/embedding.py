"""The bits of tables of embeddings."""

from dataclasses import dataclass

from ptq_diffusion.numeric.grid import FLOAT_BITS


@dataclass(frozen=True)
class EmbeddingTables:
    """The bits of every `nn.Embedding` of a network, such as the rows of its classes: stored numbers, no operations.

    Args:
        bits: 2 to 8 on the grids of weights, a row of the table being an output channel; 32 leaves them in float.

    Raises:
        ValueError: other bits.
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits != FLOAT_BITS and not 2 <= self.bits <= 8:
            raise ValueError(
                f"expected 2 to 8 bits of tables of embeddings, or {FLOAT_BITS} for float, got "
                f"quantizer.embedding.bits={self.bits}; set one of these"
            )
