"""Weights of a quantized network: packed integers with scales, or float where a plan says so."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ptq_diffusion.numeric.grid import FLOAT_BITS, Grid
from ptq_diffusion.numeric.packing import pack, unpack
from ptq_diffusion.quantizer import AffineQuantizer, Granularity, PerChannel, PerGroup, PerTensor, Quantizer


class StoredWeight(nn.Module, ABC):
    """One copy of a layer's weight as it is stored.

    Attributes:
        bits: of one number, 32 for float.
        symmetric: whether its grid is, which float counts as.
    """

    bits: int
    symmetric: bool

    @abstractmethod
    def values(self, gain: Tensor | None = None) -> Tensor:
        """The numbers that the stored ones stand for, (O, ...): float32, of a float weight in the network's dtype.

        Args:
            gain: (O,) factors of the output channels, which go into the scales; None is 1.
        """

    @abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """The stored tensors by name, to be kept as safetensors."""

    def forget(self) -> None:
        """Drop what was unpacked of the stored numbers, which is unpacked again when it is needed."""
        return


class QuantizedWeight(StoredWeight):
    """w_hat = s (n - z) with integers n of 2 to 8 bits, stored densely.

    Args:
        packed: the integers less the lowest of their grid, as `numeric.packing.pack` gives them.
        scale: s, float32, of the shape that the granularity has for the weight's: (1,) for the whole tensor, (O,) for
            its output channels.
        zero_point: z, int32, of the shape of the scale.
        grid: of the integers.
        shape: of the weight, output channels first.
        granularity: the groups that have a scale each.
        factors: by which the weight was multiplied before it met its grid, and by which scales are divided for it; they
            broadcast against the weight. None is 1.
    """

    packed: Tensor
    scale: Tensor
    zero_point: Tensor
    group_size: Tensor | None
    factors: Tensor | None

    def __init__(
        self,
        packed: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        grid: Grid,
        shape: tuple[int, ...],
        granularity: Granularity,
        factors: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.bits, self.symmetric = grid, grid.bits, grid.symmetric
        self.shape, self.granularity = shape, granularity
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        # Scales of groups do not tell how large these are; those of every other granularity do.
        size = torch.tensor([granularity.size], dtype=torch.int32) if isinstance(granularity, PerGroup) else None
        self.register_buffer("group_size", size)
        self.register_buffer("factors", factors)
        # Unpacked once for all forwards, and once more wherever the tensors are moved to.
        self._integers: Tensor | None = None
        self._values: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor, quantizer: Quantizer) -> "QuantizedWeight":
        """A float weight rounded to the nearest integers of the grid of a frozen quantizer.

        Raises:
            TypeError: a kind of quantizer whose integers cannot be stored yet.
            ValueError: a granularity that is not of weights.
        """
        require_of_weights(quantizer)
        return cls.of_integers(quantizer.to_integers(weight), quantizer)

    @classmethod
    def of_integers(cls, integers: Tensor, quantizer: Quantizer) -> "QuantizedWeight":
        """Integers of the grid of a frozen quantizer, of the weight's shape, whichever way it was rounded.

        Raises:
            TypeError: a kind of quantizer whose integers cannot be stored yet.
            ValueError: an integer that the grid has not.
        """
        require_of_weights(quantizer)
        assert isinstance(quantizer, AffineQuantizer)
        grid, shape = quantizer.grid, tuple(integers.shape)
        packed = pack(integers - grid.low, grid.bits)
        return cls(packed, quantizer.scale, quantizer.zero_point, grid, shape, quantizer.granularity, quantizer.factors)

    def values(self, gain: Tensor | None = None) -> Tensor:
        if gain is not None:
            return self._centred() * (self.scales() * along_outputs(gain, len(self.shape)))
        if self._values is None:
            self._values = self.unpacked()
        return self._values

    def unpacked(self) -> Tensor:
        """The same numbers as `values` gives without a gain; they are not kept."""
        return self.centred() * self.scales()

    def centred(self) -> Tensor:
        """n - z as float32, in which such integers are exact, (O, ...)."""
        codes = unpack(self.packed, self.bits, self.shape)
        return (codes + (self.grid.low - self._spread(self.zero_point))).float()

    def _centred(self) -> Tensor:
        # Kept for gains alone, which change from step to step: without them the values are all that is asked for.
        if self._integers is None:
            self._integers = self.centred()
        return self._integers

    def scales(self) -> Tensor:
        """The float32 factors of the integers; they broadcast against them."""
        scale = self._spread(self.scale)
        return scale if self.factors is None else scale / self.factors

    def _spread(self, parameter: Tensor) -> Tensor:
        return self.granularity.spread(parameter, self.shape)

    def tensors(self) -> Mapping[str, Tensor]:
        tensors = {"packed": self.packed, "scale": self.scale}
        if self.group_size is not None:
            tensors["group_size"] = self.group_size
        return tensors if self.grid.symmetric else tensors | {"zero_point": self.zero_point}

    def forget(self) -> None:
        self._integers = self._values = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedWeight":
        self.forget()
        return super()._apply(fn, recurse)


class FloatWeight(StoredWeight):
    """A weight that is left in float, in the network's dtype.

    Args:
        weight: (O, ...).
    """

    weight: Tensor
    bits, symmetric = FLOAT_BITS, True

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def values(self, gain: Tensor | None = None) -> Tensor:
        return self.weight if gain is None else self.weight * along_outputs(gain, self.weight.ndim)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"weight": self.weight}


def stored_weight(
    tensors: Mapping[str, Tensor],
    bits: int,
    symmetric: bool,
    shape: tuple[int, ...],
    factors: Tensor | None = None,
) -> StoredWeight:
    """The stored weight whose `tensors` these are.

    Args:
        tensors: by name.
        bits: of one number.
        symmetric: whether its grid is.
        shape: of the weight.
        factors: see `QuantizedWeight`; they belong to the layer and are not among the tensors.

    Raises:
        KeyError: a tensor is missing.
        ValueError: bits that no grid has, or tensors of another shape or type.
    """
    if bits == FLOAT_BITS:
        if tuple(tensors["weight"].shape) != shape:
            raise ValueError(f"expected a weight of {shape}, got {tuple(tensors['weight'].shape)}")
        return FloatWeight(tensors["weight"])
    grid, scale = Grid(bits, symmetric), tensors["scale"]
    zero_point = torch.zeros_like(scale, dtype=torch.int32) if symmetric else tensors["zero_point"]
    unpack(tensors["packed"], bits, shape)
    require_scales(scale)
    if zero_point.dtype != torch.int32:
        raise ValueError(f"expected zero points of {torch.int32}, got {zero_point.dtype}")
    granularity = _granularity(scale, tensors.get("group_size"))
    if scale.shape != zero_point.shape or tuple(scale.shape) != granularity.parameter_shape(shape):
        raise ValueError(
            f"expected a scale for each of {shape[0]} output channels or one, or of {granularity} those of a weight of "
            f"{shape}, got {tuple(scale.shape)}"
        )
    return QuantizedWeight(tensors["packed"], scale, zero_point, grid, shape, granularity, factors)


def require_of_weights(quantizer: Quantizer) -> None:
    """Refuse a quantizer whose integers no weight can be stored as.

    Raises:
        TypeError: a kind of quantizer whose integers cannot be stored yet.
        ValueError: a granularity of inputs only; the message says which to choose.
    """
    if not isinstance(quantizer, AffineQuantizer):
        raise TypeError(f"expected an AffineQuantizer of a weight, got {type(quantizer).__name__}")
    if not quantizer.granularity.of_weights:
        raise ValueError(
            f"expected a quantizer of weights, got one with {quantizer.granularity}, which only inputs can have; "
            "choose quantizer@quantizer.weight=symmetric_per_channel"
        )


def _granularity(scale: Tensor, size: Tensor | None) -> Granularity:
    """The granularity that stored scales have."""
    if size is not None:
        return PerGroup(int(size))
    return PerTensor() if tuple(scale.shape) == (1,) else PerChannel(max(scale.ndim - 1, 0))


def along_outputs(gain: Tensor, dimensions: int) -> Tensor:
    """Factors of the output channels, (O,), as they broadcast against a weight of so many dimensions."""
    return gain.view(-1, *[1] * (dimensions - 1))


def require_scales(scale: Tensor) -> None:
    """Refuse scales that no grid has.

    Raises:
        ValueError: they are of another type than float32, or one is not a positive number.
    """
    if scale.dtype != torch.float32 or not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError(f"expected positive scales of {torch.float32}, got {scale.dtype} of at least {scale.min()}")
