"""The cost of a quantized network: bit operations and bytes."""

from dataclasses import dataclass

from ptq_diffusion.bitwidth.cost import macs_by_bits, plan_cost
from ptq_diffusion.bitwidth.cost import mean_bits as mean_bits_of
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.denoiser import Denoiser
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


def cost(model: Denoiser, plan: BitwidthPlan, steps: int) -> Cost:
    """The cost of sampling with a plan.

    Args:
        model: the float model.
        plan: bits of every site; 32 bits throughout is full precision.
        steps: network evaluations of one image; of a plan that varies, the steps of its table.

    Raises:
        ValueError: the plan was made for another number of steps.
    """
    total = plan_cost(_architecture(model), plan, steps)
    return Cost(total.bops, total.attention_bops, total.stored_bits // 8)


def usual_bits(model: Denoiser, plan: BitwidthPlan) -> tuple[int, int]:
    """The (weight, activation) bits that most multiply-accumulates use, the WxAy by which a plan is called."""
    totals = macs_by_bits(_architecture(model), plan, plan.steps)
    usual = max(totals, key=lambda bits: totals[bits])
    return usual.weight, usual.activation


def mean_bits(model: Denoiser, plan: BitwidthPlan) -> tuple[float, float]:
    """The (weight, activation) bits of a multiply-accumulate of layers with weights, on average over all steps."""
    return mean_bits_of(_architecture(model), plan, plan.steps)


def _architecture(model: Denoiser) -> Architecture:
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return Architecture(tuple(model.sites()), model.attention_macs(), parameters)
