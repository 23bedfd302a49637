"""The plan of least damage under a budget, exactly: a multiple-choice knapsack."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix, hstack, identity, kron, vstack

from ptq_diffusion.bitwidth.choices import Assignment, Choices, Limits, Numbers, chosen
from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.sensitivity import Sensitivity
from ptq_diffusion.bitwidth.under_budget import Spending, UnderBudget

GAP = 1e-5
"""Largest relative excess of damage over the best plan's: far below what a measurement knows."""
SCALE = 1e4
"""The sum of the largest damages as the solver sees it: its absolute tolerances (1e-6) are small beside it."""


class Budget(UnderBudget[Sensitivity]):
    """Minimise the sum over layers and steps of damage(layer, step, bits) under a budget, by HiGHS.

    One variable y says whether a group of layers has a weight bitwidth, one variable z whether it has a pair of weight
    and activation bitwidths at a group of steps, so that bit operations, a product of both bitwidths, are linear in z:
    sum_w y = 1, sum_a z = y. The plan's notes say the predicted damage of the free layers, a bound that no plan can be
    below, and the gap between the two relative to the damage.
    """

    reads: ClassVar[Evidence] = Evidence.SENSITIVITY

    def spend(self, choices: Choices, evidence: Sensitivity) -> Spending:
        damage = choices.damage(evidence)
        optimum = minimise(choices, damage)
        predicted = float(chosen(damage, optimum.assignment).sum())
        notes = {"predicted_damage": predicted, "bound": optimum.bound, "gap": optimum.gap}
        return Spending(optimum.assignment, notes)


@dataclass(frozen=True, eq=False)
class Optimum:
    """The solver's answer.

    Args:
        assignment: of least damage.
        bound: a damage that no assignment within the limits is below.
        gap: between the two, relative to the damage.
    """

    assignment: Assignment
    bound: float
    gap: float


def minimise(choices: Choices, damage: Numbers) -> Optimum:
    """The assignment of least damage within the limits.

    Args:
        choices: whose cheapest assignment keeps the limits.
        damage: (R, C, W, A) of every choice.

    Raises:
        ValueError: the solver gives up.
    """
    scale = SCALE / (float(np.abs(damage).max(axis=(2, 3)).sum()) or 1.0)
    limits, bound = choices.limits, None
    while True:
        assignment, lower = _solve(choices, damage * scale, limits)
        bound = lower / scale if bound is None else bound
        if choices.fits(assignment):
            value = float(chosen(damage, assignment).sum())
            return Optimum(assignment, bound, max(value - bound, 0.0) / (abs(value) or 1.0))
        # The solver's tolerance let the sums through; they are whole numbers, which are to be kept exactly.
        limits = _tightened(limits, choices.limits, choices.cost(assignment))


def _tightened(limits: Limits, kept: Limits, spent: tuple[int, int]) -> Limits:
    """The limits less what an assignment spends beyond those that are to be kept."""
    bops, stored = (
        None if limit is None or whole is None else limit - max(cost - whole, 0)
        for limit, whole, cost in zip((limits.bops, limits.stored), (kept.bops, kept.stored), spent, strict=True)
    )
    return Limits(bops, stored)


def _solve(choices: Choices, damage: Numbers, limits: Limits) -> tuple[Assignment, float]:
    """The assignment and the bound of its damage."""
    rows, columns, weights, activations = damage.shape
    heads = rows * weights
    constraints = _structure(*damage.shape)
    stored, bops = np.zeros(heads + damage.size), np.zeros(heads + damage.size)
    stored[:heads], bops[heads:] = choices.stored.ravel(), choices.bops.ravel()
    for costs, limit in ((bops, limits.bops), (stored, limits.stored)):
        if limit is not None:
            # Whole numbers as small as they can be: the solver's tolerance is absolute.
            unit = int(np.gcd.reduce(costs.astype(np.int64))) or 1
            constraints.append(LinearConstraint(costs[None] / unit, -np.inf, limit // unit))
    objective = np.concatenate([np.zeros(heads), damage.ravel()])
    result = milp(
        objective,
        integrality=np.ones_like(objective),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": GAP},
    )
    if result.x is None:
        raise ValueError(
            f"expected a plan within the budget, the solver has none ({result.message}); change saving or bytes"
        )
    weight = result.x[:heads].reshape(rows, weights).argmax(1)
    selection = result.x[heads:].reshape(damage.shape)
    activation = selection[np.arange(rows), :, weight, :].argmax(2)
    return Assignment(weight, activation), float(result.mip_dual_bound)


def _structure(rows: int, columns: int, weights: int, activations: int) -> list[LinearConstraint]:
    """One weight bitwidth for a group of layers; one activation bitwidth, beside that weight, at a group of steps."""
    heads, cells = rows * weights, rows * columns * weights
    one_weight = kron(identity(rows), np.ones((1, weights)))
    head = np.arange(heads).reshape(rows, 1, weights).repeat(columns, axis=1).ravel()
    own_weight = csr_matrix((np.ones(cells), (np.arange(cells), head)), shape=(cells, heads))
    one_activation = kron(identity(cells), np.ones((1, activations)))
    matrix = vstack(
        [
            hstack([one_weight, csr_matrix((rows, cells * activations))]),
            hstack([-own_weight, one_activation]),
        ],
        format="csr",
    )
    sums = np.concatenate([np.ones(rows), np.zeros(cells)])
    return [LinearConstraint(matrix, sums, sums)]
