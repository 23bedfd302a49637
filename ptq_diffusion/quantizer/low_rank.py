"""Affine quantization of what a product of two thin matrices leaves of a weight."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ptq_diffusion.quantizer.affine import AffineQuantizer
from ptq_diffusion.quantizer.quantizer import Quantizer

BITS = 16
"""Bits of the numbers of both matrices, float16."""


@dataclass(frozen=True)
class LowRank:
    """The part of every inner layer's weight that stays in 16 bits, see `LowRankQuantizer`.

    Args:
        rank: of the part; 0 for none.

    Raises:
        ValueError: a negative rank.
    """

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"expected a rank of at least 0, got quantizer.low_rank.rank={self.rank}")


class LowRankQuantizer(AffineQuantizer):
    """w_hat = L1 L2 + r_hat: the part of rank r that is largest stays in 16 bits, the rest r = w - L1 L2 meets grids.

    SVDQuant, Li et al., ICLR 2025, arXiv 2411.05007, with the weight as a matrix (O, I k k). There L2 reads the input
    in 16 bits; here it reads the quantized one, so that a layer has one weight and one input. Of a weight that is
    multiplied by factors (`equalised`), the part is taken of the product.

    Args:
        bits: 2 to 8.
        rank: r, at least 1.
        options: of an `AffineQuantizer` of weights.

    Raises:
        ValueError: a rank below 1, or see `AffineQuantizer`.
    """

    left: Tensor
    right: Tensor

    def __init__(self, bits: int, rank: int, **options: Any) -> None:
        super().__init__(bits, **options)
        if rank < 1:
            raise ValueError(f"expected a rank of at least 1, got {rank}; quantizer.low_rank.rank=0 is none")
        self.rank = rank
        self.register_buffer("left", torch.empty(0, 0, dtype=torch.float16))
        self.register_buffer("right", torch.empty(0, 0, dtype=torch.float16))

    def observe(self, x: Tensor) -> None:
        matrix = (x if self.factors is None else x * self.factors).detach().flatten(1).double()
        require_rank(self.rank, matrix.shape)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        # Each takes the root, so that neither is beyond the range of float16.
        root = s[: self.rank].sqrt()
        self.left, self.right = (u[:, : self.rank] * root).half(), (root[:, None] * v[: self.rank]).half()
        super().observe(x - self.low_rank(x))

    def low_rank(self, x: Tensor) -> Tensor:
        """L1 L2 as the part of a weight x, of its shape, float32."""
        part = low_rank_product(self.left, self.right, tuple(x.shape))
        return part if self.factors is None else part / self.factors

    def to_integers(self, x: Tensor) -> Tensor:
        return super().to_integers(x - self.low_rank(x))

    def from_integers(self, integers: Tensor) -> Tensor:
        return super().from_integers(integers) + self.low_rank(integers)

    def forward(self, x: Tensor) -> Tensor:
        return self.from_integers(self.to_integers(x)).to(x.dtype)

    def differentiable(self, x: Tensor) -> Tensor:
        part = self.low_rank(x)
        return (super().differentiable(x.float() - part) + part).to(x.dtype)


def low_rank_product(left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor:
    """L1 L2 in float32 as a weight of a shape.

    Args:
        left: L1, (O, r) float16.
        right: L2, (r, I k k) float16.
        shape: of the weight.
    """
    return (left.float() @ right.float()).view(shape)


def require_rank(rank: int, shape: Sequence[int]) -> None:
    """Refuse a rank that a matrix of this shape has not.

    Raises:
        ValueError: the message gives both.
    """
    if rank > min(shape):
        raise ValueError(
            f"expected a rank of at most {min(shape)}, that of a matrix {shape[0]} x {shape[1]}, got {rank}"
        )


def with_low_rank(make: Callable[[int], Quantizer], rank: int) -> Callable[[int], LowRankQuantizer]:
    """From a bitwidth to the quantizer that leaves a part of some rank in 16 bits, and is else what another makes.

    Raises:
        ValueError: the other makes something else than an `AffineQuantizer` of options.
    """
    if not isinstance(make, partial) or make.func is not AffineQuantizer:
        raise ValueError(
            f"expected an AffineQuantizer of weights beside a part of low rank, got {make}; choose "
            "quantizer@quantizer.weight=symmetric_per_channel or set quantizer.low_rank.rank=0"
        )
    return partial(LowRankQuantizer, rank=rank, **make.keywords)
