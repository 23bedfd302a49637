"""The choices that a budget is spent on: a grid of groups of layers by groups of steps, each of which gets bits.

Shapes: R groups of layers, C groups of steps, W bitwidths of weights, A bitwidths of activations. A weight has one
bitwidth at all steps, so it is chosen for a group of layers; activations are chosen for every pair of groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptq_diffusion.bitwidth.cost import NOTHING_OUTSIDE_PLAN, CostOutsidePlan
from ptq_diffusion.bitwidth.sensitivity import Sensitivity
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.model.site import Site

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]
Over = Literal["layers_and_steps", "layers", "steps"]
"""The dimensions along which bits may differ: layers and steps, layers alone, or steps alone."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A choice for every group.

    Args:
        weight: (R,) the place of the weight's bits among those offered.
        activation: (R, C) the place of the activation's.
    """

    weight: Integers
    activation: Integers


@dataclass(frozen=True)
class Limits:
    """Upper bounds of the cost of all choices together; None is no limit.

    Args:
        bops: bit operations.
        stored: bits of weights.
    """

    bops: int | None
    stored: int | None


@dataclass(frozen=True)
class Choices:
    """The free layers of a network over a table, and the bits that they may get.

    Args:
        sites: the free layers, at least one.
        rows: forwards for one image at every step of the table, at least one.
        over: what may differ in its bits.
        weights: bits offered to weights, ascending.
        activations: bits offered to activations, ascending.
        limits: of what they may cost.
        outside_plan: the work of layers that no plan tells.
    """

    sites: tuple[Site, ...]
    rows: tuple[int, ...]
    over: Over
    weights: tuple[int, ...]
    activations: tuple[int, ...]
    limits: Limits
    outside_plan: CostOutsidePlan = NOTHING_OUTSIDE_PLAN

    @property
    def steps(self) -> int:
        """The number of steps of the table."""
        return len(self.rows)

    @cached_property
    def bops(self) -> Integers:
        """Bit operations of every choice, (R, C, W, A)."""
        pairs = np.multiply.outer(np.array(self.weights), np.array(self.activations))
        macs = np.array([[site.macs * rows for rows in self.rows] for site in self.sites])
        offers = [[LayerBits(weight, activation) for activation in self.activations] for weight in self.weights]
        outside_plan = np.array(
            [[[self.outside_plan.bops_of(site, bits) for bits in some] for some in offers] for site in self.sites],
            np.int64,
        )
        rows = np.array(self.rows)[None, :, None, None]
        return self._grouped(np.multiply.outer(macs, pairs) + outside_plan[:, None] * rows)

    @cached_property
    def stored(self) -> Integers:
        """Bits that a weight takes in every choice, (R, W)."""
        sizes = np.array([prod(site.weight_shape) for site in self.sites])
        stored = np.multiply.outer(sizes, np.array(self.weights))
        return stored.sum(0, keepdims=True) if self.over == "steps" else stored

    def damage(self, sensitivity: Sensitivity) -> Numbers:
        """Damage of every choice, (R, C, W, A).

        Raises:
            ValueError: the sensitivity lacks a layer or bits, or is of another number of steps.
        """
        names = [site.name for site in self.sites]
        weight, activation = sensitivity.select(names, self.steps, self.weights, self.activations)
        return self._grouped(weight.double()[:, :, :, None].numpy() + activation.double()[:, :, None, :].numpy())

    def cheapest(self) -> Assignment:
        """The fewest bits everywhere."""
        rows, columns = self.bops.shape[:2]
        return Assignment(np.zeros(rows, np.int64), np.zeros((rows, columns), np.int64))

    def cost(self, assignment: Assignment) -> tuple[int, int]:
        """Bit operations and stored bits of an assignment."""
        rows = np.arange(len(assignment.weight))
        return int(chosen(self.bops, assignment).sum()), int(self.stored[rows, assignment.weight].sum())

    def fits(self, assignment: Assignment) -> bool:
        """Whether an assignment keeps the limits."""
        spent = self.cost(assignment)
        return all(
            limit is None or cost <= limit
            for cost, limit in zip(spent, (self.limits.bops, self.limits.stored), strict=True)
        )

    def table(self, assignment: Assignment) -> Sequence[Mapping[str, LayerBits]]:
        """The bits of every layer at every step."""
        shape = (len(self.sites), self.steps)
        weight = np.broadcast_to(assignment.weight[:, None], shape).tolist()
        activation = np.broadcast_to(assignment.activation, shape).tolist()
        return [
            {
                site.name: LayerBits(self.weights[weight[row][i]], self.activations[activation[row][i]])
                for row, site in enumerate(self.sites)
            }
            for i in range(self.steps)
        ]

    def _grouped(self, values: NDArray) -> NDArray:
        """(layers, steps, ...) summed within groups."""
        if self.over == "steps":
            return values.sum(0, keepdims=True)
        return values.sum(1, keepdims=True) if self.over == "layers" else values


def chosen(values: NDArray, assignment: Assignment) -> NDArray:
    """The entries of (R, C, W, A) that an assignment chooses, (R, C)."""
    rows, columns = np.indices(assignment.activation.shape)
    return values[rows, columns, assignment.weight[:, None], assignment.activation]
