"""The bits that a bitwidth policy offers, and to which layers: all of it that its measurements depend on."""

from collections.abc import Mapping

from omegaconf import DictConfig, open_dict

from ptq_diffusion.bitwidth.budget import Budget
from ptq_diffusion.bitwidth.roles import EIGHT_BITS
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.engine.factory import names_kind

OFFER = ("weights", "activations", "patterns")
"""Options of a policy that say which bits it offers to which layers."""
FIXED_BITS = {role: dict(EIGHT_BITS) for role in ("first", "last", "attention")}
"""Bits of the layers that a policy does not choose."""
CONSTRAINTS = {"saving": 1, "bytes": None, "over": "layers_and_steps"}
"""Options of a policy beside its offer, with values for a signature: no damage of a layer depends on them."""


def with_offer(cfg: DictConfig) -> DictConfig:
    """The configuration with one policy in the place of all that offer the same bits, which share measurements.

    What a policy may spend, and on what, changes no damage. One without an offer stays.
    """
    return _representative(cfg, FIXED_BITS)


def with_offer_and_roles(cfg: DictConfig) -> DictConfig:
    """The same with the bits of the layers that a policy does not choose, on which the error of the output depends."""
    if not names_kind(cfg.bitwidth, UnderBudget):
        return cfg
    return _representative(cfg, {role: cfg.bitwidth[role] for role in FIXED_BITS if role in cfg.bitwidth})


def _representative(cfg: DictConfig, roles: Mapping[str, object]) -> DictConfig:
    if any(name not in cfg.bitwidth for name in OFFER):
        return cfg
    representative = cfg.copy()
    offer = {name: cfg.bitwidth[name] for name in OFFER}
    with open_dict(representative):
        target = {"_target_": f"{Budget.__module__}.{Budget.__qualname__}"}
        representative.bitwidth = target | CONSTRAINTS | offer | dict(roles)
    return representative
