"""The bitwidth plans of an experiment, as far as they are known before anything is measured."""

from collections.abc import Mapping

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.command.plan.case import Case
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network.attention import quantized_attentions
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.rounding.parts import parts_of
from ptq_diffusion.stage.planning.additions import policy_of

USUAL = (LayerBits(8, 8), LayerBits(4, 8), LayerBits(4, 4))
"""Bits of inner layers that a plan is set beside."""
FLOAT = "full precision"


def plans(case: Case) -> Mapping[str, BitwidthPlan]:
    """Full precision, the plan that is chosen, and those of usual bits with its first, last and attention's bits.

    A policy that reads a measurement has no plan yet: the cheapest and the dearest of its offers stand for it.
    """
    policy, architecture = _policy(case), case.model.architecture(case.table)
    policy.check(architecture, case.table)
    policy.roles.require_products(architecture)
    unquantized = LayerBits(FLOAT_BITS, FLOAT_BITS)
    named = {FLOAT: BitwidthPlan.constant({site.name: unquantized for site in architecture.sites})}
    named |= {f"{case.cfg.labels.bitwidth}{end}": plan for end, plan in _chosen(policy, case).items()}
    uniform = {f"w{bits.weight}a{bits.activation}": policy.uniform(architecture, bits) for bits in USUAL}
    present = {plan.fingerprint() for plan in named.values()}
    return named | {name: plan for name, plan in uniform.items() if plan.fingerprint() not in present}


def dearest(case: Case) -> BitwidthPlan:
    """The chosen plan, or that of the policy's dearest offer, which stores the most."""
    *_, plan = _chosen(_policy(case), case).values()
    return plan


def learned_parts(case: Case) -> list[str]:
    """The blocks, and layers and attentions outside of them, that have an activation of fewer than float bits.

    They are those whose scales can be learned, as far as a plan tells.
    """
    plan, sites, blocks = dearest(case), case.model.sites(), list(case.model.blocks())
    attentions = quantized_attentions(sites, plan)
    layers = [site.name for site in sites if site.weighted and {*plan.activation[site.name]} != {FLOAT_BITS}]
    alone = [name for name in attentions if not any(f"{name}.".startswith(f"{block}.") for block in blocks)]
    operands = [operand for products in attentions.values() for site in products for operand in site.operands]
    return [part.name for part in parts_of([*blocks, *alone], [*layers, *operands])]


def _policy(case: Case) -> BitwidthPolicy:
    return policy_of(case.cfg, case.model, case.table)


def _chosen(policy: BitwidthPolicy[None], case: Case) -> Mapping[str, BitwidthPlan]:
    """The plan of the policy, or its cheapest and its dearest, by the ending of their names."""
    architecture = case.model.architecture(case.table)
    if policy.reads is Evidence.NOTHING:
        return {"": policy.plan(architecture, case.table, None)}
    cheapest, costliest = policy.offered[0], policy.offered[-1]
    return {
        ", cheapest": policy.uniform(architecture, cheapest),
        ", dearest": policy.uniform(architecture, costliest),
    }
