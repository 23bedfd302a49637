"""Rescalings of one layer at one step: a gain and an offset of its output channels, and a grid of its input."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptq_diffusion.network.differences import by_difference, numbers_of_difference
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import AffineQuantizer, Numbers, PerTensor, RangeSearch

CONSTANT = 1e-4
"""Share of its root mean square below which a channel's standard deviation counts as none."""
ALIKE = 1e-5
"""The share of an input's largest number up to which two of its rows are the same."""
LARGEST_GAIN = 4.0
"""Largest ratio, or inverse of one, of two deviations that are matched: beyond it they are not of one channel."""
BINS = 1024
"""Bins of the histogram of a layer's input."""


@dataclass(frozen=True)
class InputGrid:
    """The grid of a layer's input at one step, of the bits that the plan gives it there.

    With a shift it is that of x - m: every channel has the interval of the grid around its own middle m, as in Outlier
    Suppression+ (Wei et al., EMNLP 2023, arXiv 2304.09145), here at each step. The product of the weight and m can join
    the bias, so that a shift costs a subtraction of every number of the input.

    Args:
        scale: (1,) float32.
        zero_point: (1,) int32.
        shift: m of the input's channels, (I,) of tokens or (I, 1, 1) of images, float32; of an equalised input x / s it
            is what is subtracted from that. None is 0.
        difference: (1,) float32, the scale of the differences of pairs of guidance, see `by_difference`; None puts
            every row on the grid itself.
    """

    scale: Tensor
    zero_point: Tensor
    shift: Tensor | None = None
    difference: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, grid: Grid, range_search: RangeSearch, shift: Tensor | None = None) -> "InputGrid":
        """The grid that a quantizer would have if it had seen this input alone, with the shift taken off."""
        x = x if shift is None else x.float() - shift
        quantizer = AffineQuantizer(grid.bits, grid.symmetric, PerTensor(), range_search, BINS)
        quantizer.observe(x)
        quantizer.freeze()
        return cls(quantizer.scale.cpu(), quantizer.zero_point.cpu(), None if shift is None else shift.cpu())

    def numbers(self, grid: Grid) -> Numbers:
        """The numbers that a quantizer of this grid computes with."""
        return Numbers.of(self.scale, self.zero_point, grid)

    def with_difference(
        self, x: Tensor, grid: Grid, range_search: RangeSearch, combined: Callable[[Tensor], Tensor]
    ) -> "InputGrid":
        """This grid with a scale of differences, where that leaves less error in the guided combination of x.

        Args:
            x: the input, rows of the null condition first.
            grid: of the rows.
            range_search: chooses the interval of the differences.
            combined: guidance, from rows to images.
        """
        x = x.float()
        null, conditional = x.chunk(2)
        difference = null - conditional
        # Rows of what is computed of the time alone differ by the rounding of float32, if at all.
        if difference.abs().max() <= ALIKE * x.abs().max():
            return self
        scale = InputGrid.of(difference, Grid(grid.bits, symmetric=True), range_search).scale
        with_scale = replace(self, difference=scale)
        with_differences, alone = (
            combined(one.fake_quantized(x, grid) - x).square().mean() for one in (with_scale, self)
        )
        return with_scale if with_differences < alone else self

    def fake_quantized(self, x: Tensor, grid: Grid) -> Tensor:
        """x_hat, the shape of x: the nearest values of the grid around m, and of differences where they have one."""
        if self.difference is None:
            return self._around_shift(x, grid)
        numbers = numbers_of_difference(self.difference, grid)
        return by_difference(x, lambda rows: self._around_shift(rows, grid), numbers)

    def _around_shift(self, x: Tensor, grid: Grid) -> Tensor:
        if self.shift is None:
            return self.numbers(grid).fake_quantized(x)
        shift = self.shift.to(x.device)
        return self.numbers(grid).fake_quantized(x.float() - shift) + shift

    def lerp(self, other: "InputGrid", weight: float) -> "InputGrid":
        """The grid between this one, at weight 0, and the other, at 1; zero stays on the grid."""
        zero_point = torch.lerp(self.zero_point.float(), other.zero_point.float(), weight).round().int()
        scale, shift = torch.lerp(self.scale, other.scale, weight), self._shift_to(other, weight)
        return InputGrid(scale, zero_point, shift, self._difference_to(other, weight))

    def _difference_to(self, other: "InputGrid", weight: float) -> Tensor | None:
        """The scale of differences in between; where one has none, that of the nearer one or none."""
        if self.difference is None or other.difference is None:
            return (self if weight < 0.5 else other).difference
        return torch.lerp(self.difference, other.difference, weight)

    def _shift_to(self, other: "InputGrid", weight: float) -> Tensor | None:
        if self.shift is None and other.shift is None:
            return None
        zero = torch.zeros(())
        ours, theirs = (zero if grid.shift is None else grid.shift for grid in (self, other))
        first, second = torch.broadcast_tensors(ours, theirs)
        return torch.lerp(first, second, weight)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a layer's output channels, over images and positions.

    Args:
        mean: (O,) float64.
        deviation: (O,) float64.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, output: Tensor, channels: int) -> "Spread":
        """The spread of an output, (B, ...), whose channels are one of its other dimensions."""
        rows = channel_rows(output, channels)
        mean = rows.mean(-1).mean(0)
        deviation = (rows - mean[:, None]).square_().mean(-1).mean(0).sqrt()
        return cls(mean.cpu().double(), deviation.cpu().double())  # Not every device has float64.

    @classmethod
    def pooled(cls, spreads: "Sequence[Spread]") -> "Spread":
        """The spread of the outputs of several steps together, of which each weighs the same."""
        means = torch.stack([spread.mean for spread in spreads])
        mean = means.mean(0)
        within = torch.stack([spread.deviation.square() for spread in spreads]).mean(0)
        return cls(mean, (within + (means - mean).square().mean(0)).sqrt())

    def equals(self, other: "Spread") -> bool:
        """Whether the numbers of all channels are the same."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.deviation, other.deviation)

    @property
    def varies(self) -> Tensor:
        """Whether each channel varies around its mean, (O,) bool."""
        return self.deviation > CONSTANT * (self.mean.square() + self.deviation.square()).sqrt()


@dataclass(frozen=True)
class Rescaling:
    """y~ = gain y + offset of the output channels of a quantized layer, whose input may have another grid too.

    The gain multiplies the scales of its weight, the offset goes into its bias, so that neither costs an operation.

    Args:
        gain: (O,) float32.
        offset: (O,) float32.
        input_grid: None leaves the input's as it was calibrated.
    """

    gain: Tensor
    offset: Tensor
    input_grid: InputGrid | None = None

    @property
    def shift(self) -> Tensor | None:
        """The shift of the input's grid, if any."""
        return None if self.input_grid is None else self.input_grid.shift

    @property
    def has_difference(self) -> bool:
        """Whether the rows of guidance are quantized by their difference."""
        return self.input_grid is not None and self.input_grid.difference is not None

    @classmethod
    def between(cls, source: Spread, target: Spread) -> "Rescaling":
        """The rescaling that gives channels the target's mean and, where both vary alike, its standard deviation."""
        gain = matched_gain(source.deviation, target.deviation, source.varies & target.varies)
        return cls.centred(gain, source, target)

    @classmethod
    def centred(cls, gain: Tensor, source: Spread, target: Spread) -> "Rescaling":
        """The rescaling of this gain, (O,) float64, that gives channels the target's mean."""
        return cls(gain.float(), (target.mean - gain * source.mean).float())

    def of(self, output: Tensor, channels: int) -> Tensor:
        """The rescaled output y~, of the shape of y, whose channels are one of its dimensions."""
        shape = [1] * output.ndim
        shape[channels] = -1
        gain, offset = self.gain.to(output.device).view(shape), self.offset.to(output.device).view(shape)
        return (output * gain + offset).to(output.dtype)

    def lerp(self, other: "Rescaling", weight: float) -> "Rescaling":
        """The rescaling between this one, at weight 0, and the other, at 1; a grid that only one has is taken whole."""
        grids = self.input_grid, other.input_grid
        both = grids[0].lerp(grids[1], weight) if grids[0] and grids[1] else grids[0] or grids[1]
        return Rescaling(torch.lerp(self.gain, other.gain, weight), torch.lerp(self.offset, other.offset, weight), both)

    def identity_like(self) -> "Rescaling":
        """The rescaling of as many channels that changes nothing."""
        return Rescaling(torch.ones_like(self.gain), torch.zeros_like(self.offset))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the rescaling by field."""
        grid = {} if self.input_grid is None else vars(self.input_grid)
        parts = {"gain": self.gain, "offset": self.offset, **grid}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    @classmethod
    def of_tensors(cls, fields: Mapping[str, Tensor]) -> "Rescaling":
        """The rescaling whose `tensors` these are.

        Raises:
            ValueError: a field is missing, unknown, of another shape or type, or holds what is no number of a grid.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in fields.items()}
        length = shapes.get("gain", ())
        channels = {"gain": length, "offset": length}
        grid = {} if "scale" not in shapes else {"scale": (1,), "zero_point": (1,)}
        beside = {name: shapes[name] for name in ("shift", "difference") if grid and name in shapes}
        shift = beside.get("shift", (1,))
        fits = len(shift) in (1, 3) and shift[1:] in ((), (1, 1)) and beside.get("difference", (1,)) == (1,)
        if len(length) != 1 or shapes != channels | grid | beside or not fits:
            raise ValueError(
                "expected a gain and an offset of one length, and a scale and a zero_point of one number or none, the "
                "two with a shift of channels and the scale of a difference or without, got "
                + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            )
        _require_numbers(fields)
        optional = {name: fields[name] for name in beside}
        return cls(
            fields["gain"],
            fields["offset"],
            InputGrid(fields["scale"], fields["zero_point"], **optional) if grid else None,
        )


def _require_numbers(fields: Mapping[str, Tensor]) -> None:
    """Refuse fields of another type than a `Rescaling` has, or that hold what is no number of a grid or a channel."""
    for name, tensor in fields.items():
        kind, is_scale = torch.int32 if name == "zero_point" else torch.float32, name in ("scale", "difference")
        if tensor.dtype != kind or not tensor.isfinite().all() or (is_scale and not (tensor > 0).all()):
            numbers = "positive numbers" if is_scale else "numbers"
            raise ValueError(f"expected finite {numbers} in {kind} of {name}, got {tensor}; fit the correction again")


def alike(source: Spread, target: Spread) -> Tensor:
    """Whether each channel varies in both, by deviations of one magnitude, (O,) bool."""
    ratio = target.deviation / source.deviation
    return source.varies & target.varies & (ratio < LARGEST_GAIN) & (ratio > 1 / LARGEST_GAIN)


def channel_rows(output: Tensor, channels: int) -> Tensor:
    """The numbers of every channel of a layer's output, (B, O, N) float32, whose channels are one of its dimensions."""
    # Along rows means are several times faster than over all other dimensions at once.
    rows = output.float().movedim(channels, 1)
    return rows.reshape(*rows.shape[:2], -1)


def matched_gain(source: Tensor, target: Tensor, vary: Tensor) -> Tensor:
    """The gains that give channels the target's deviation, 1 where they do not vary alike; gradients are finite.

    Args:
        source: the deviation of every channel.
        target: that it is to have, of the same shape.
        vary: whether both vary.
    """
    # A channel that does not vary has no ratio, and a gradient through one would be no number.
    above, below = (torch.where(vary, deviation, 1.0) for deviation in (target, source))
    ratio = above / below
    return torch.where((ratio < LARGEST_GAIN) & (ratio > 1 / LARGEST_GAIN), ratio, 1.0)


def rescaling_tensors(rescalings: Mapping[str, Rescaling]) -> dict[str, Tensor]:
    """The tensors of rescalings by layer/field."""
    return {
        f"{name}/{field}": tensor
        for name, rescaling in rescalings.items()
        for field, tensor in rescaling.tensors().items()
    }


def rescalings_of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Rescaling]:
    """The rescalings whose `rescaling_tensors` these are.

    Raises:
        ValueError: a field is missing, unknown or of another shape.
    """
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        layer, _, field = name.rpartition("/")
        parts[layer][field] = tensor
    return {layer: Rescaling.of_tensors(fields) for layer, fields in parts.items()}
