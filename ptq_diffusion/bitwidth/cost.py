"""The cost of a plan over a table of steps: bit operations and stored bits, exact."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import Site
from ptq_diffusion.numeric.grid import FLOAT_BITS

HALF = 16
"""Bits of a number of a part of low rank."""


@dataclass(frozen=True)
class PlanCost:
    """Cost of one image, of all steps together.

    Args:
        bops: bit operations, the sum over steps and sites of MACs x weight bits x activation bits, attention included,
            and what layers compute beside them: a float32 multiplication of every equalised number, and the products
            of parts of low rank.
        attention_bops: those of QK^T and PV, which have no weight: MACs x bits of one operand x bits of the other.
        float_bops: those of the network in full precision.
        stored_bits: of all parameters: weights of sites in each of their bitwidths, tables of embeddings in theirs, all
            others in float32.
    """

    bops: int
    attention_bops: int
    float_bops: int
    stored_bits: int

    @property
    def saving(self) -> float:
        """Bit operations in full precision over those of the plan."""
        return self.float_bops / self.bops

    @property
    def attention_share(self) -> float:
        """The share of attention's products in the bit operations, 0 to 1."""
        return self.attention_bops / self.bops


@dataclass(frozen=True)
class CostOutsidePlan:
    """Work and bits of a network that no plan of its sites' bits tells: equalisation, parts of low rank, embeddings.

    Args:
        equalised: the names of layers whose input is divided by factors of its channels.
        ranks: of the parts of weights that stay in 16 bits, by layer. The first of their two matrices reads the
            quantized input, the second what the first gives, in 16 bits.
        embeddings: how many numbers all tables of embeddings have.
        embedding_bits: of each of them.
    """

    equalised: Collection[str] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    embeddings: int = 0
    embedding_bits: int = FLOAT_BITS

    @property
    def computes(self) -> bool:
        """Whether layers compute anything but the products of their quantized operands."""
        return bool(self.equalised or self.ranks)

    def bops(self, architecture: Architecture, plan: BitwidthPlan, steps: int) -> int:
        """Bit operations of one image, over all steps."""
        rows, sites = architecture.rows_over(steps), [site for site in architecture.sites if site.weighted]
        counts = ((site, plan.counts(site.name, rows).items()) for site in sites)
        return sum(count * self.bops_of(site, bits) for site, some in counts for bits, count in some)

    def bops_of(self, site: Site, bits: LayerBits) -> int:
        """Bit operations of one layer in one forward of one image, at some bits."""
        total, rank = 0, self.ranks.get(site.name, 0)
        if site.name in self.equalised and bits.activation != FLOAT_BITS:
            total += site.input_size * FLOAT_BITS**2
        if rank and bits.weight != FLOAT_BITS:
            outputs, numbers = site.weight_shape[0], math.prod(site.weight_shape[1:])
            places = site.macs // (outputs * numbers)
            total += places * rank * (numbers * HALF * bits.activation + outputs * HALF**2)
        return total

    def stored_bits(self, architecture: Architecture, plan: BitwidthPlan) -> int:
        """Bits of all parameters that are no weight of a site, and of the matrices of all copies that have them."""
        total = other_bits(architecture) - self.embeddings * (FLOAT_BITS - self.embedding_bits)
        for site in (site for site in architecture.sites if site.name in self.ranks):
            copies = sum(bits != FLOAT_BITS for bits in plan.weight_copies(site.name))
            total += copies * self.ranks[site.name] * (site.weight_shape[0] + math.prod(site.weight_shape[1:])) * HALF
        return total


NOTHING_OUTSIDE_PLAN = CostOutsidePlan()
"""No layer is equalised, no weight has a part in 16 bits, and tables of embeddings are float."""


def plan_cost(
    architecture: Architecture, plan: BitwidthPlan, steps: int, outside_plan: CostOutsidePlan = NOTHING_OUTSIDE_PLAN
) -> PlanCost:
    """The cost of sampling with a plan.

    Args:
        architecture: of the network.
        plan: bits of all of its sites.
        steps: rows of the table.
        outside_plan: the work and bits of the network that no plan tells.

    Raises:
        KeyError: the plan lacks a site.
        ValueError: the plan was made for another number of steps.
    """
    bops = _bops(macs_by_bits(architecture, plan, steps)) + outside_plan.bops(architecture, plan, steps)
    attention = attention_bops(architecture, plan, steps)
    stored = sum(math.prod(site.weight_shape) * sum(plan.weight_copies(site.name)) for site in architecture.sites)
    stored += outside_plan.stored_bits(architecture, plan)
    return PlanCost(bops + attention, attention, float_bops(architecture, steps), stored)


def mean_bits(architecture: Architecture, plan: BitwidthPlan, steps: int) -> tuple[float, float]:
    """The (weight, activation) bits of a multiply-accumulate of layers with weights, on average over them and steps.

    Raises:
        KeyError: the plan lacks a site.
        ValueError: the plan was made for another number of steps, or the network has no work at such layers.
    """
    work = macs_by_bits(architecture, plan, steps)
    total = sum(work.values())
    if total == 0:
        raise ValueError(
            "expected a network with work at layers with weights, got none; a mean of its bits has no meaning"
        )
    weight = sum(macs * bits.weight for bits, macs in work.items())
    activation = sum(macs * bits.activation for bits, macs in work.items())
    return weight / total, activation / total


def macs_by_bits(architecture: Architecture, plan: BitwidthPlan, steps: int) -> Mapping[LayerBits, int]:
    """Multiply-accumulates of all steps by the bits that they use; attention's products are left out."""
    sites = (site for site in architecture.sites if site.weighted)
    return _macs_by_bits(sites, plan, architecture.rows_over(steps))


def _macs_by_bits(sites: Iterable[Site], plan: BitwidthPlan, rows: Sequence[int]) -> Mapping[LayerBits, int]:
    work: Counter[LayerBits] = Counter()
    for site in sites:
        for bits, count in plan.counts(site.name, rows).items():
            work[bits] += count * site.macs
    return work


def _bops(work: Mapping[LayerBits, int]) -> int:
    return sum(macs * bits.weight * bits.activation for bits, macs in work.items())


def float_bops(architecture: Architecture, steps: int) -> int:
    """Bit operations of so many steps in full precision."""
    macs = sum(site.macs for site in architecture.sites) + architecture.attention_macs
    return sum(architecture.rows_over(steps)) * macs * FLOAT_BITS**2


def attention_bops(architecture: Architecture, plan: BitwidthPlan, steps: int) -> int:
    """Bit operations of attention's products over so many steps; those that are no sites are float.

    Raises:
        KeyError: the plan lacks a site.
        ValueError: the plan was made for another number of steps.
    """
    rows = architecture.rows_over(steps)
    products = _macs_by_bits((site for site in architecture.sites if not site.weighted), plan, rows)
    return _bops(products) + sum(rows) * architecture.attention_macs * FLOAT_BITS**2


def other_bits(architecture: Architecture) -> int:
    """Bits of the parameters that are no weight of a site, which no plan changes, in float32."""
    weights = sum(math.prod(site.weight_shape) for site in architecture.sites)
    return (architecture.parameters - weights) * FLOAT_BITS
