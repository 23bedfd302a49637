"""The base of all policies that spend a budget: their options, the budget in numbers, and its refusal."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor, inf
from typing import Any, Self

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.bitwidth.choices import Assignment, Choices, Limits, Over
from ptq_diffusion.bitwidth.cost import NOTHING_OUTSIDE_PLAN, CostOutsidePlan, PlanCost, float_bops, plan_cost
from ptq_diffusion.bitwidth.policy import BitwidthPolicy, Measured
from ptq_diffusion.bitwidth.roles import EIGHT_BITS, UNQUANTIZED, Roles
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import Site
from ptq_diffusion.sampler.step import Step


@dataclass(frozen=True)
class Spending:
    """An assignment and the policy's account of it.

    Args:
        assignment: which keeps the limits.
        notes: such as the damage that is predicted.
    """

    assignment: Assignment
    notes: Mapping[str, float]


class UnderBudget(BitwidthPolicy[Measured]):
    """A policy that spends a budget of bit operations, of bytes, or both, on the bits of inner layers.

    A layer's weight has one bitwidth at all steps, so that it is stored once.

    Args:
        saving: how many times fewer bit operations than full precision the plan takes at least, attention's products
            and what layers compute beside included, see `counting_outside_plan`; null for no such budget.
        bytes: of all parameters at most, weights and tables of embeddings at their bits, parts of low rank at 16, the
            others in float32; scales and settings, a few per cent which reports count too, come on top; null for no
            such budget.
        over: what may differ in its bits: `layers_and_steps`, `layers` (the same at every step) or `steps` (the same in
            every inner layer).
        weights: bits offered to weights, ascending, 2 to 8.
        activations: bits offered to activations, ascending, 2 to 8.
        first: `{weight, activation}` bits of the first layer, at every step.
        last: of the last layer, at every step.
        attention: of its products, at every step: `activation` of Q and P, `weight` of K and V.
        patterns: exceptions by name, at every step.
        count_correction: whether the saving is that of the plan and the correction together, see `behind`.

    Raises:
        ValueError: there is no budget, or one that is not positive; bits that no quantizer has, or not in ascending
            order.
    """

    def __init__(
        self,
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
        _require_budget(saving, bytes)
        self.count_correction, self.additions, self.outside_plan = count_correction, Additions(), NOTHING_OUTSIDE_PLAN
        self.saving, self.bytes, self.over = saving, bytes, over
        self.weights, self.activations = _ascending("weights", weights), _ascending("activations", activations)
        offered = [LayerBits(weight, activation) for weight in self.weights for activation in self.activations]
        super().__init__(Roles.of_options(first, last, attention, patterns), offered)

    def behind(self, additions: Additions) -> Self:
        """The policy that leaves room in its saving for the operations of a correction."""
        policy = copy(self)
        policy.additions = additions
        return policy

    def counting_outside_plan(self, outside_plan: CostOutsidePlan) -> Self:
        """The policy of a network that computes and stores this outside of its plan, which budgets count."""
        policy = copy(self)
        policy.outside_plan = outside_plan
        return policy

    @abstractmethod
    def spend(self, choices: Choices, evidence: Measured) -> Spending:
        """Bits for every choice, within the limits, which the cheapest assignment keeps.

        Raises:
            ValueError: the measurement lacks a layer, a step or bits.
        """

    def check(self, architecture: Architecture, steps: Sequence[Step]) -> None:
        super().check(architecture, steps)
        cheapest = self._cost(architecture, self.uniform(architecture, self.offered[0]), len(steps))
        name = f"W{self.weights[0]}A{self.activations[0]} in the inner layers"
        if self.outside_plan.computes:
            name += " with the factors of equalisation and the parts of low rank"
        total = self.additions.total(cheapest.bops, len(steps))
        most = floor(cheapest.float_bops / total * 1e4) / 1e4 if total else inf
        together = f"{name}, and the correction" if self.count_correction else name
        bops, stored = self._limits(architecture, len(steps))
        if bops is not None and cheapest.bops > bops:
            raise ValueError(
                f"expected a saving of at most {most}, that of the cheapest plan, {together}, got "
                f"{self.saving}; lower saving or offer fewer bits ({cheapest.attention_share:.0%} of that plan's bit "
                "operations are attention's products, whose bits are bitwidth.attention.weight and "
                "bitwidth.attention.activation)"
            )
        if stored is not None and cheapest.stored_bits > stored:
            raise ValueError(
                f"expected bytes of at least {-(-cheapest.stored_bits // 8)}, those of the cheapest plan, {name}, got "
                f"{self.bytes}; raise bytes or offer fewer bits"
            )

    def plan(self, architecture: Architecture, steps: Sequence[Step], evidence: Measured) -> BitwidthPlan:
        self.check(architecture, steps)
        free = self.roles.free(architecture.sites)
        cheapest = self.uniform(architecture, self.offered[0])
        if not free:
            return cheapest
        choices = self._choices(architecture, free, self._cost(architecture, cheapest, len(steps)), len(steps))
        spending = self.spend(choices, evidence)
        table = choices.table(spending.assignment)
        bops = self._cost(architecture, self.roles.plan(architecture.sites, table), len(steps)).bops
        notes = {"bops": float(bops)}
        if self.count_correction:
            notes["bops_with_correction"] = float(self.additions.total(bops, len(steps)))
        return self.roles.plan(architecture.sites, table, notes | dict(spending.notes))

    def _cost(self, architecture: Architecture, plan: BitwidthPlan, steps: int) -> PlanCost:
        return plan_cost(architecture, plan, steps, self.outside_plan)

    def _choices(self, architecture: Architecture, free: tuple[Site, ...], cheapest: PlanCost, steps: int) -> Choices:
        """The choices, whose limits are what the fixed layers and attention leave of the budget."""
        rows = architecture.rows_over(steps)
        unlimited = Choices(
            free, rows, self.over, self.weights, self.activations, Limits(None, None), self.outside_plan
        )
        spent = unlimited.cost(unlimited.cheapest())
        bops, stored = self._limits(architecture, steps)
        limits = Limits(
            None if bops is None else bops - (cheapest.bops - spent[0]),
            None if stored is None else stored - (cheapest.stored_bits - spent[1]),
        )
        return replace(unlimited, limits=limits)

    def _limits(self, architecture: Architecture, steps: int) -> tuple[int | None, int | None]:
        """Bit operations and stored bits of a whole plan at most."""
        whole = None if self.saving is None else int(float_bops(architecture, steps) / Fraction(self.saving))
        bops = None if whole is None else self.additions.room(whole, steps)
        return bops, None if self.bytes is None else 8 * self.bytes


def _require_budget(saving: float | None, size: int | None) -> None:
    if saving is None and size is None:
        raise ValueError("expected a budget, saving or bytes, got neither; set saving, such as 30")
    if saving is not None and not 0 < saving < inf:
        raise ValueError(f"expected a saving above 0, got {saving}")
    if size is not None and size <= 0:
        raise ValueError(f"expected bytes above 0, got {size}")


def _ascending(what: str, bits: Sequence[int]) -> tuple[int, ...]:
    if not bits or any(a >= b for a, b in zip(bits, bits[1:], strict=False)):
        raise ValueError(f"expected bits offered to {what} in ascending order, got {list(bits)}")
    if odd := [number for number in bits if not 2 <= number <= 8]:
        raise ValueError(f"expected bits offered to {what} of 2 to 8, which quantizers have, got {odd[0]}")
    return tuple(bits)
