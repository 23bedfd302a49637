"""A budget spent by chance: the control of every policy that spends one by a measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ptq_diffusion.bitwidth.choices import Choices, Over
from ptq_diffusion.bitwidth.roles import EIGHT_BITS, UNQUANTIZED
from ptq_diffusion.bitwidth.under_budget import Spending, UnderBudget
from ptq_diffusion.numeric.seed import generator


class RandomBits(UnderBudget[None]):
    """Raises bits from the cheapest plan on, by one offer at a layer and step drawn by chance, until no raise fits.

    So the plan is within one raise of the budget, as plans that it is compared with are.

    Args:
        seed: of the draws.
        saving: as `UnderBudget`, like all that follow.
        bytes: see there.
        over: see there.
        weights: see there.
        activations: see there.
        first: see there.
        last: see there.
        attention: see there.
        patterns: see there.
        count_correction: see there.

    Raises:
        ValueError: as `UnderBudget`.
    """

    def __init__(
        self,
        seed: int = 0,
        saving: float | None = 30,
        bytes: int | None = None,
        over: Over = "layers_and_steps",
        weights: Sequence[int] = (4,),
        activations: Sequence[int] = (3, 4, 6, 8),
        first: Mapping[str, Any] = EIGHT_BITS,
        last: Mapping[str, Any] = EIGHT_BITS,
        attention: Mapping[str, Any] = UNQUANTIZED,
        patterns: Sequence[Mapping[str, Any]] = (),
        count_correction: bool = False,
    ) -> None:
        shared = (saving, bytes, over, weights, activations, first, last, attention, patterns, count_correction)
        super().__init__(*shared)
        self.seed = seed

    def spend(self, choices: Choices, evidence: None = None) -> Spending:  # noqa: ARG002
        stream = generator("bitwidth plan", self.seed)
        climb = _Climb(choices)
        # A cell that cannot be raised is closed: what is left only shrinks and what a raise adds only grows.
        cells = list(range(climb.cells))
        while cells:
            place = int(torch.randint(len(cells), (), generator=stream))
            if not climb.raised(cells[place]):
                cells[place] = cells[-1]
                cells.pop()
        return Spending(climb.assignment, {})


class _Climb:
    """An assignment on its way up. A cell is an activation, R x C of them, or a weight, R."""

    def __init__(self, choices: Choices) -> None:
        self.assignment = choices.cheapest()
        self._bops, self._stored = choices.bops, choices.stored
        limits = (choices.limits.bops, choices.limits.stored)
        self._remainder = [
            None if limit is None else limit - cost
            for limit, cost in zip(limits, choices.cost(self.assignment), strict=True)
        ]

    @property
    def cells(self) -> int:
        """The number of cells."""
        return self.assignment.activation.size + self.assignment.weight.size

    def raised(self, cell: int) -> bool:
        """Raise a cell to the next bits; False where there are none or they do not fit."""
        rows, columns = self.assignment.activation.shape
        row, column = divmod(cell, columns) if cell < rows * columns else (cell - rows * columns, None)
        bits = self.assignment.weight[row : row + 1] if column is None else self.assignment.activation[row, column:]
        top = self._bops.shape[2 if column is None else 3] - 1
        if bits[0] == top:
            return False
        before = self._cost(row)
        bits[0] += 1
        added = [new - old for new, old in zip(self._cost(row), before, strict=True)]
        if any(limit is not None and more > limit for limit, more in zip(self._remainder, added, strict=True)):
            bits[0] -= 1
            return False
        self._remainder = [
            None if limit is None else limit - more for limit, more in zip(self._remainder, added, strict=True)
        ]
        return True

    def _cost(self, row: int) -> tuple[int, int]:
        """Bit operations and stored bits of a row."""
        weight, activation = self.assignment.weight[row], self.assignment.activation[row]
        return int(self._bops[row, np.arange(len(activation)), weight, activation].sum()), int(
            self._stored[row, weight]
        )
