"""The contract of a rounding: which integers of its grid stand for a weight."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import AffineQuantizer
from ptq_diffusion.rounding.inputs import Inputs
from ptq_diffusion.rounding.moments import Moments


class Reads(Enum):
    """The evidence that a rounding reads beside the weight."""

    NOTHING = "nothing"
    INPUTS = "the second moments of a layer's inputs"
    CALLS = "the inputs and outputs of blocks"


class Rounding(ABC):
    """Chooses the integers of weights; scales and zero points are the quantizer's and stay.

    Class attributes:
        reads: the evidence.
    """

    reads: ClassVar[Reads]


class LayerRounding(Rounding):
    """A rounding of one layer after the other, each by the second moments of its inputs.

    With H the second moments, the output changes by tr(D H D^T) when the weight changes by D, whatever the inputs were,
    so that no input is kept.

    Args:
        inputs: how the moments are taken.
    """

    reads = Reads.INPUTS

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    @abstractmethod
    def rounded(self, problem: "RowProblem") -> Tensor:
        """The integers of all rows, (R, n)."""

    def integers(self, weight: Tensor, quantizer: AffineQuantizer, moments: Moments) -> Tensor:
        """The integers of a weight, int32, of its shape.

        A row, the weight of one output channel, that came out worse than nearest keeps nearest.

        Args:
            weight: (O, ...).
            quantizer: of it, frozen.
            moments: of the layer's inputs.

        Raises:
            ValueError: moments of another layer.
        """
        groups, width = moments.second.shape[:2]
        if weight[0].numel() != width or len(weight) % groups:
            raise ValueError(
                f"expected second moments of the {weight[0].numel()} inputs of every row of a weight, got those of "
                f"{width} in {groups} groups; they are of another layer, take them again"
            )
        scale, zero_point = quantizer.spread(weight)
        parts = (part.reshape(groups, -1, width) for part in (weight.float(), scale, zero_point))
        rows = []
        for group, (row_weight, row_scale, row_zero) in enumerate(zip(*parts, strict=True)):
            target = moments.target(row_weight, group)
            problem = RowProblem(target, row_scale, row_zero, quantizer.grid, moments.second[group])
            nearest, rounded = problem.nearest(row_weight), self.rounded(problem)
            better = problem.error(rounded) < problem.error(nearest)
            rows.append(torch.where(better[:, None], rounded, nearest))
        return torch.stack(rows).reshape(weight.shape)


@dataclass(frozen=True)
class RowProblem:
    """The rows of one layer's weight that read the same inputs, and all that their rounding depends on.

    Args:
        target: the values to round, (R, n) float32.
        scale: of every element, (R, n).
        zero_point: of every element, (R, n) int32.
        grid: of the integers.
        second: the second moments H of the inputs, (n, n).
    """

    target: Tensor
    scale: Tensor
    zero_point: Tensor
    grid: Grid
    second: Tensor

    def nearest(self, values: Tensor) -> Tensor:
        """The integers nearest to values, as the quantizer gives them, (R, n) int32."""
        integers = (values * (1 / self.scale)).round() + self.zero_point
        return integers.clamp(self.grid.low, self.grid.high).to(torch.int32)

    def values(self, integers: Tensor) -> Tensor:
        """The values that integers stand for, (R, n)."""
        return (integers - self.zero_point) * self.scale

    def error(self, integers: Tensor) -> Tensor:
        """The mean square by which each row's output changes, (R,) float64."""
        change = (self.values(integers) - self.target).double()
        return ((change @ self.second.double()) * change).sum(1)
