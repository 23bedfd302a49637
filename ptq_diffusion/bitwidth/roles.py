"""Bits that no policy decides: those of the first and the last layer, of attention, and of what a pattern names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import Role, Site
from ptq_diffusion.numeric.grid import FLOAT_BITS

EIGHT_BITS: Mapping[str, int] = MappingProxyType({"weight": 8, "activation": 8})
FOUR_EIGHT: Mapping[str, int] = MappingProxyType({"weight": 4, "activation": 8})
FOUR_BITS: Mapping[str, int] = MappingProxyType({"weight": 4, "activation": 4})
UNQUANTIZED: Mapping[str, int] = MappingProxyType({"weight": FLOAT_BITS, "activation": FLOAT_BITS})


@dataclass(frozen=True)
class Roles:
    """Bits by role and by name; the layers that are left are free for a policy to decide.

    Args:
        first: of the first layer.
        last: of the last layer.
        attention: of attention's products.
        patterns: shell-style patterns of layer names with their bits; they override the roles, the last match wins.
    """

    first: LayerBits
    last: LayerBits
    attention: LayerBits
    patterns: tuple[tuple[str, LayerBits], ...]

    @classmethod
    def of_options(
        cls,
        first: Mapping[str, Any],
        last: Mapping[str, Any],
        attention: Mapping[str, Any],
        patterns: Sequence[Mapping[str, Any]],
    ) -> "Roles":
        """The roles of options: `{weight, activation}` of each role and `{name, weight, activation}` of each pattern.

        Raises:
            ValueError: an entry has other keys than these, or a bitwidth is none.
        """
        entries = [_with_keys(entry, {"name", "weight", "activation"}) for entry in patterns]
        named = tuple((str(entry["name"]), LayerBits(entry["weight"], entry["activation"])) for entry in entries)
        return cls(layer_bits(first), layer_bits(last), layer_bits(attention), named)

    def require_products(self, architecture: Architecture) -> None:
        """Refuse bits of attention's products on a network some of whose products are no sites and would stay in float.

        Raises:
            ValueError: they are to have bits.
        """
        bits, left = self.attention, architecture.attention_macs
        if left and min(bits.weight, bits.activation) < FLOAT_BITS:
            raise ValueError(
                f"expected bitwidth.attention in float on a network of whose attention {left / 1e9:.3g} GMACs a "
                f"forward are products that nothing quantizes, got W{bits.weight}A{bits.activation}; set "
                f"bitwidth.attention.weight={FLOAT_BITS} bitwidth.attention.activation={FLOAT_BITS}"
            )

    def fixed(self, sites: Sequence[Site]) -> dict[str, LayerBits]:
        """Bits of the sites that are not free, by name.

        Raises:
            ValueError: a pattern matches no layer.
        """
        by_role = {Role.FIRST: self.first, Role.LAST: self.last, Role.ATTENTION: self.attention}
        layers = {site.name: by_role[site.role] for site in sites if site.role in by_role}
        for pattern, bits in self.patterns:
            matches = [site.name for site in sites if fnmatchcase(site.name, pattern)]
            if not matches:
                some = ", ".join([site.name for site in sites][:5])
                raise ValueError(
                    f"expected bitwidth pattern {pattern!r} to match a layer, it matches none; layers are {some}, ..."
                )
            layers |= dict.fromkeys(matches, bits)
        return layers

    def free(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The layers that a policy decides, in the network's order.

        Raises:
            ValueError: a pattern matches no layer.
        """
        fixed = self.fixed(sites)
        return tuple(site for site in sites if site.name not in fixed)

    def plan(
        self,
        sites: Sequence[Site],
        table: Sequence[Mapping[str, LayerBits]],
        notes: Mapping[str, float] | None = None,
    ) -> BitwidthPlan:
        """The plan whose free layers have the bits table[i] at step i.

        Raises:
            ValueError: a pattern matches no layer, or there is no step.
        """
        fixed = self.fixed(sites)
        whole = [{site.name: fixed.get(site.name) or free[site.name] for site in sites} for free in table]
        return BitwidthPlan.by_step(whole, notes)

    def uniform(self, sites: Sequence[Site], by_step: Sequence[LayerBits]) -> BitwidthPlan:
        """The plan whose free layers all have the bits by_step[i] at step i.

        Raises:
            ValueError: a pattern matches no layer, or there is no step.
        """
        names = [site.name for site in self.free(sites)]
        return self.plan(sites, [dict.fromkeys(names, bits) for bits in by_step])


def layer_bits(entry: Mapping[str, Any]) -> LayerBits:
    """The bits that the options `{weight, activation}` of a layer name.

    Raises:
        ValueError: the entry has other keys, or a bitwidth is none.
    """
    return LayerBits(**_with_keys(entry, {"weight", "activation"}))


def _with_keys(entry: Mapping[str, Any], keys: set[str]) -> Mapping[str, Any]:
    if set(entry) != keys:
        raise ValueError(f"expected bits as {', '.join(sorted(keys))}, got {', '.join(sorted(entry)) or 'nothing'}")
    return entry
