"""The contract of a bitwidth policy."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.roles import Roles
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.sampler.step import Step

Measured = TypeVar("Measured")
"""None, `StepSignal` or `Sensitivity`: the value that belongs to a policy's `reads`."""


class BitwidthPolicy(ABC, Generic[Measured]):
    """A rule that makes a plan of a network, a table of steps and, for some policies, a measurement.

    A policy decides the bits of inner layers only; its roles say those of the first and the last layer, of
    attention's products, and of what a pattern names.

    Class attributes:
        reads: the measurement that `plan` needs.
        by_step: whether its plans may change from step to step, and so belong to one table.

    Args:
        roles: bits that it does not decide.
        offered: every pair of bits that it may give an inner layer; what a measurement has to cover.
    """

    reads: ClassVar[Evidence] = Evidence.NOTHING
    by_step: ClassVar[bool] = True

    def __init__(self, roles: Roles, offered: Sequence[LayerBits]) -> None:
        self.roles, self.offered = roles, tuple(offered)

    @abstractmethod
    def plan(self, architecture: Architecture, steps: Sequence[Step], evidence: Measured) -> BitwidthPlan:
        """Bits of every site at every step; equal arguments give equal plans.

        Args:
            architecture: of the network.
            steps: the rows of the sampler's table, from t = T down.
            evidence: the measurement that the policy reads, of this network and table; None where it reads nothing.

        Raises:
            ValueError: as `check`, or the measurement lacks a site, a step or bits that the policy needs.
        """

    def check(self, architecture: Architecture, steps: Sequence[Step]) -> None:
        """Refuse what cannot be planned, before anything is measured.

        Raises:
            ValueError: a pattern matches no layer, there are no steps, or a budget is below the cheapest plan.
        """
        self.roles.fixed(architecture.sites)
        if self.by_step and not steps:
            raise ValueError("expected the steps of a sampler's table for bits that change with them, got none")

    def uniform(self, architecture: Architecture, bits: LayerBits) -> BitwidthPlan:
        """The plan whose inner layers have these bits at every step, such as a measurement of one offer needs.

        Raises:
            ValueError: a pattern matches no layer.
        """
        return self.roles.uniform(architecture.sites, [bits])


def require_ascending(offered: Sequence[LayerBits]) -> None:
    """Refuse offers that are not each dearer than the one before, in bit operations.

    Raises:
        ValueError: they are not, or there is none.
    """
    prices = [bits.weight * bits.activation for bits in offered]
    if not prices or any(a >= b for a, b in zip(prices, prices[1:], strict=False)):
        offers = ", ".join(f"W{bits.weight}A{bits.activation}" for bits in offered) or "nothing"
        raise ValueError(f"expected offered bits in ascending order of weight x activation bits, got {offers}")
