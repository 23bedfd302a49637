"""A budget spent bit by bit, where it buys most at the moment."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ptq_diffusion.bitwidth.choices import Assignment, Choices, Numbers, chosen
from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.sensitivity import Sensitivity
from ptq_diffusion.bitwidth.under_budget import Spending, UnderBudget

Flags = NDArray[np.bool_]
UNLIMITED = np.iinfo(np.int64).max


class Greedy(UnderBudget[Sensitivity]):
    """Raises bits from the cheapest plan on, the largest drop of damage for what it adds first, until none fits.

    A raise may skip bitwidths. What it adds is its part of the bit operations' limit plus its part of the bytes' limit.
    Not exact: see `Budget`, whose damage is not above this one's but for the solver's gap.
    """

    reads: ClassVar[Evidence] = Evidence.SENSITIVITY

    def spend(self, choices: Choices, evidence: Sensitivity) -> Spending:
        damage = choices.damage(evidence)
        climb = _Climb(choices, damage)
        while climb.raise_best():
            pass
        predicted = float(chosen(damage, climb.assignment).sum())
        return Spending(climb.assignment, {"predicted_damage": predicted})


class _Climb:
    """An assignment on its way up, with the worth of every raise from it.

    Raises of a row are its C x A activations, then its W weights.
    """

    def __init__(self, choices: Choices, damage: Numbers) -> None:
        self.assignment = choices.cheapest()
        self._bops, self._stored, self._damage = choices.bops, choices.stored, damage
        limits = (choices.limits.bops, choices.limits.stored)
        spent = choices.cost(self.assignment)
        self._remainder = np.array(
            [UNLIMITED if limit is None else limit - cost for limit, cost in zip(limits, spent, strict=True)]
        )
        self._price = np.array([0.0 if limit is None else 1 / max(limit, 1) for limit in limits])
        rows, columns, weights, activations = damage.shape
        self._added = np.zeros((rows, columns * activations + weights, 2), np.int64)
        self._worth = np.zeros((rows, columns * activations + weights))
        for row in range(rows):
            self._weigh(row)

    def raise_best(self) -> bool:
        """Apply the raise of the highest worth that fits; False where none is left."""
        while True:
            row, move = divmod(int(self._worth.argmax()), self._worth.shape[1])
            if self._worth[row, move] <= 0:
                return False
            if (self._added[row, move] <= self._remainder).all():
                break
            # It never will: what is left only shrinks.
            self._worth[row, move] = -np.inf
        self._remainder = np.where(self._price > 0, self._remainder - self._added[row, move], UNLIMITED)
        columns, activations = self._damage.shape[1], self._damage.shape[3]
        if move < columns * activations:
            self.assignment.activation[row, move // activations] = move % activations
        else:
            self.assignment.weight[row] = move - columns * activations
        self._weigh(row)
        return True

    def _weigh(self, row: int) -> None:
        """Drop of damage of a row's raises for what they add; -inf for what is no raise."""
        drop, higher = _changes(-self._damage[row], self.assignment, row)
        bops, _ = _changes(self._bops[row], self.assignment, row)
        stored = np.zeros_like(bops)
        weights = self._stored.shape[1]
        stored[-weights:] = self._stored[row] - self._stored[row, self.assignment.weight[row]]
        self._added[row] = np.stack([bops, stored], axis=1)
        price = self._added[row] @ self._price
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = np.where(price > 0, drop / price, np.inf)
        self._worth[row] = np.where(higher & (drop > 0), worth, -np.inf)


def _changes(values: NDArray, assignment: Assignment, row: int) -> tuple[NDArray, Flags]:
    """The amount that every raise of a row adds to its sum of (C, W, A) values, and which entries are raises."""
    weight, activation = int(assignment.weight[row]), assignment.activation[row]
    columns, weights, activations = values.shape
    present = values[np.arange(columns), weight, activation]
    by_activation = values[:, weight, :] - present[:, None]
    by_weight = values[np.arange(columns), :, activation].sum(0) - present.sum()
    higher = np.concatenate([(np.arange(activations) > activation[:, None]).ravel(), np.arange(weights) > weight])
    return np.concatenate([by_activation.ravel(), by_weight]), higher
