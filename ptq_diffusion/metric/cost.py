"""What a quantized network costs: bit operations and bytes."""

import math
from dataclasses import dataclass

from ptq_diffusion.model.denoiser import Denoiser
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.numeric.grid import FLOAT_BITS


@dataclass(frozen=True)
class Cost:
    """Of one image and one network.

    Args:
        bops_per_image: bit operations of all steps, sum over layers of MACs x weight bits x activation bits.
            Attention's QK^T and PV have no weight; both operands are float here and count with 32 x 32 bits.
        weight_bytes: quantized weights at their bits, all other parameters as float32; scales are not counted.
    """

    bops_per_image: int
    weight_bytes: int


def cost(model: Denoiser, plan: BitwidthPlan, steps: int) -> Cost:
    """The cost of sampling with a plan.

    Args:
        model: the float model.
        plan: bits of every site; 32 bits throughout is full precision.
        steps: network evaluations of one image.
    """
    sites = model.sites()
    macs_by_bits = sum(site.macs * plan[site.name].weight * plan[site.name].activation for site in sites)
    attention = model.attention_macs() * FLOAT_BITS**2
    saved_bits = sum(math.prod(site.weight_shape) * (FLOAT_BITS - plan[site.name].weight) for site in sites)
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    weight_bytes = (parameters * FLOAT_BITS - saved_bits) // 8
    return Cost((macs_by_bits + attention) * steps, weight_bytes)


def usual_bits(model: Denoiser, plan: BitwidthPlan) -> tuple[int, int]:
    """The (weight, activation) bits that most multiply-accumulates use, the WxAy by which a plan is called."""
    totals: dict[tuple[int, int], int] = {}
    for site in model.sites():
        bits = (plan[site.name].weight, plan[site.name].activation)
        totals[bits] = totals.get(bits, 0) + site.macs
    return max(totals, key=lambda bits: totals[bits])
