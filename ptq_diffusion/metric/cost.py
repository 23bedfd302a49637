"""The cost of a quantized network: bit operations and bytes."""

from dataclasses import dataclass

from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.bitwidth.cost import NOTHING_OUTSIDE_PLAN, CostOutsidePlan, macs_by_bits, plan_cost
from ptq_diffusion.bitwidth.cost import mean_bits as mean_bits_of
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan


@dataclass(frozen=True)
class Cost:
    """The cost of one image and of one network.

    Args:
        bops_per_image: bit operations of all steps, sum over layers of MACs x weight bits x activation bits.
            Attention's QK^T and PV have no weight: MACs x bits of Q x bits of K, and of P x of V.
        attention_bops: the part of them that attention's products are.
        weight_bytes: quantized weights at their bits, once for every bitwidth that a step needs, all other parameters
            as float32; scales are not counted.
    """

    bops_per_image: int
    attention_bops: int
    weight_bytes: int

    @property
    def attention_share(self) -> float:
        """The share of attention's products in the bit operations, 0 to 1."""
        return self.attention_bops / self.bops_per_image


@dataclass(frozen=True)
class VariantCost:
    """The cost of one variant, as a row of an evaluation has it.

    Args:
        weight_bits: that most multiply-accumulates use, see `usual_bits`.
        activation_bits: likewise.
        mean_weight_bits: of a multiply-accumulate on average, see `mean_bits`.
        mean_activation_bits: likewise.
        bops_per_image: bit operations of all evaluations of the network and of the correction.
        bops_saving: bit operations in full precision over these.
        attention_share: the share of attention's products in them, 0 to 1.
        weight_bytes: of the network, and of the correction's coefficients.
    """

    weight_bits: int
    activation_bits: int
    mean_weight_bits: float
    mean_activation_bits: float
    bops_per_image: int
    bops_saving: float
    attention_share: float
    weight_bytes: int


def cost(architecture: Architecture, plan: BitwidthPlan, steps: int) -> Cost:
    """The cost of sampling with a plan.

    Args:
        architecture: of the network, over the table.
        plan: bits of every site; 32 bits throughout is full precision.
        steps: rows of the table; a guided network is evaluated twice for one image at some of them.

    Raises:
        ValueError: the plan was made for another number of steps.
    """
    total = plan_cost(architecture, plan, steps)
    return Cost(total.bops, total.attention_bops, total.stored_bits // 8)


def variant_cost(
    architecture: Architecture,
    plan: BitwidthPlan,
    steps: int,
    weight_bytes: int,
    evaluations: int = 0,
    macs: int = 0,
    outside_plan: CostOutsidePlan = NOTHING_OUTSIDE_PLAN,
) -> VariantCost:
    """The cost of a variant, with what a correction adds to the network.

    Args:
        architecture: of the network, over the table.
        plan: bits of every site.
        steps: rows of the table.
        weight_bytes: of all that the variant stores.
        evaluations: of the network, beside those of the table.
        macs: multiply-accumulates of the correction for one image, in float.
        outside_plan: the work and bits of the quantized network that its plan does not tell.

    Raises:
        ValueError: the plan was made for another number of steps.
    """
    total = plan_cost(architecture, plan, steps, outside_plan)
    additions = Additions(macs, evaluations)
    bops, attention = additions.total(total.bops, steps), additions.evaluated(total.attention_bops, steps)
    bits, means = usual_bits(architecture, plan), mean_bits(architecture, plan)
    return VariantCost(*bits, *means, bops, total.float_bops / bops, attention / bops, weight_bytes)


def usual_bits(architecture: Architecture, plan: BitwidthPlan) -> tuple[int, int]:
    """The (weight, activation) bits that most multiply-accumulates use, the WxAy by which a plan is called."""
    totals = macs_by_bits(architecture, plan, len(architecture.rows) or plan.steps)
    usual = max(totals, key=lambda bits: totals[bits])
    return usual.weight, usual.activation


def mean_bits(architecture: Architecture, plan: BitwidthPlan) -> tuple[float, float]:
    """The (weight, activation) bits of a multiply-accumulate of layers with weights, on average over all steps."""
    return mean_bits_of(architecture, plan, len(architecture.rows) or plan.steps)
