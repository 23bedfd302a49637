"""Weights of which a part of low rank is stored in 16 bits, and integers of the rest."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ptq_diffusion.model.site import Role, Site
from ptq_diffusion.network.integers import QuantizedWeight, StoredWeight, along_outputs, stored_weight
from ptq_diffusion.quantizer import Quantizer
from ptq_diffusion.quantizer.low_rank import LowRankQuantizer, low_rank_product, require_rank, with_low_rank

LEFT, RIGHT = "left", "right"
"""The names of both matrices among the tensors of a weight."""


class LowRankWeight(StoredWeight):
    """w_hat = L1 L2 + s (n - z), see `LowRankQuantizer`.

    Args:
        residual: s (n - z).
        left: L1, (O, r) float16.
        right: L2, (r, I k k) float16.

    Raises:
        ValueError: matrices of another shape than the weight's, or of another type.
    """

    left: Tensor
    right: Tensor

    def __init__(self, residual: QuantizedWeight, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.residual, self.shape = residual, residual.shape
        self.bits, self.symmetric = residual.bits, residual.symmetric
        expected = (self.shape[0], left.shape[-1]), (left.shape[-1], math.prod(self.shape[1:]))
        if {left.dtype, right.dtype} != {torch.float16} or (tuple(left.shape), tuple(right.shape)) != expected:
            raise ValueError(
                f"expected matrices {expected} of {torch.float16} for a weight of {self.shape}, got "
                f"{tuple(left.shape)} of {left.dtype} and {tuple(right.shape)} of {right.dtype}"
            )
        self.register_buffer(LEFT, left)
        self.register_buffer(RIGHT, right)
        self._values: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, quantizer: LowRankQuantizer) -> "LowRankWeight":
        """A float weight by the frozen quantizer that has seen it."""
        return cls(QuantizedWeight.of(weight, quantizer), quantizer.left, quantizer.right)

    def values(self, gain: Tensor | None = None) -> Tensor:
        if self._values is None:
            part, factors = low_rank_product(self.left, self.right, self.shape), self.residual.factors
            self._values = self.residual.unpacked() + (part if factors is None else part / factors)
        return self._values if gain is None else self._values * along_outputs(gain, len(self.shape))

    def tensors(self) -> Mapping[str, Tensor]:
        return {**self.residual.tensors(), LEFT: self.left, RIGHT: self.right}

    def forget(self) -> None:
        self._values = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LowRankWeight":
        self.forget()
        return super()._apply(fn, recurse)


def quantizer_of_layer(
    make: Callable[[int], Quantizer], rank: int, site: Site, layer: nn.Module
) -> Callable[[int], Quantizer]:
    """From a bitwidth to a fresh quantizer of the weight of one layer; the first and the last have no part of low rank.

    Args:
        make: from a bitwidth to a quantizer without one.
        rank: of the part; 0 for none.
        site: of the layer.
        layer: the float one.

    Raises:
        ValueError: the layer's weight has no part of this rank; the message names it.
    """
    if not rank or site.role is not Role.INNER:
        return make
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(
            f"expected layers without groups of channels, whose weight is one matrix, got {site.name}; set "
            "quantizer.low_rank.rank=0"
        )
    try:
        require_rank(rank, (site.weight_shape[0], math.prod(site.weight_shape[1:])))
    except ValueError as error:
        raise ValueError(f"{site.name}: {error}; lower quantizer.low_rank.rank") from error
    return with_low_rank(make, rank)


def whole_weight(
    tensors: Mapping[str, Tensor], bits: int, symmetric: bool, shape: tuple[int, ...], factors: Tensor | None
) -> StoredWeight:
    """The stored weight whose `tensors` these are, with a part of low rank or without.

    Args:
        tensors: by name.
        bits: of one number.
        symmetric: whether its grid is.
        shape: of the weight.
        factors: see `QuantizedWeight`.

    Raises:
        KeyError: a tensor is missing.
        ValueError: see `stored_weight` and `LowRankWeight`.
    """
    residual = stored_weight(tensors, bits, symmetric, shape, factors)
    if LEFT not in tensors or not isinstance(residual, QuantizedWeight):
        return residual
    return LowRankWeight(residual, tensors[LEFT], tensors[RIGHT])
