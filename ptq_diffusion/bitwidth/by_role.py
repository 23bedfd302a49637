"""Bits by a layer's role, with exceptions by name."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import Role, Site


class ByRole(BitwidthPolicy):
    """One choice for the inner layers, one for the first, one for the last; patterns override, the last match wins.

    Args:
        inner: `{weight, activation}` bits of every layer that is neither first nor last.
        first: of the first layer.
        last: of the last layer.
        patterns: exceptions, each a shell-style pattern of layer names and its bits, such as
            `{name: "*.time_emb_proj", weight: 8, activation: 8}`. 32 bits
            leave a tensor in float.

    Raises:
        ValueError: an entry has other keys than these, or a bitwidth is none.
    """

    def __init__(
        self,
        inner: Mapping[str, Any],
        first: Mapping[str, Any],
        last: Mapping[str, Any],
        patterns: Sequence[Mapping[str, Any]],
    ) -> None:
        self._by_role = {
            role: LayerBits(**_with_keys(entry, {"weight", "activation"}))
            for role, entry in ((Role.INNER, inner), (Role.FIRST, first), (Role.LAST, last))
        }
        named = [_with_keys(entry, {"name", "weight", "activation"}) for entry in patterns]
        self._patterns = [(str(entry["name"]), LayerBits(entry["weight"], entry["activation"])) for entry in named]

    def plan(self, sites: Sequence[Site]) -> BitwidthPlan:
        layers = {site.name: self._by_role[site.role] for site in sites}
        for pattern, bits in self._patterns:
            matches = [name for name in layers if fnmatchcase(name, pattern)]
            if not matches:
                some = ", ".join(list(layers)[:5])
                raise ValueError(
                    f"expected bitwidth pattern {pattern!r} to match a layer, it matches none; layers are {some}, ..."
                )
            layers |= dict.fromkeys(matches, bits)
        return BitwidthPlan.constant(layers)


def _with_keys(entry: Mapping[str, Any], keys: set[str]) -> Mapping[str, Any]:
    if set(entry) != keys:
        raise ValueError(f"expected bits as {', '.join(sorted(keys))}, got {', '.join(sorted(entry)) or 'nothing'}")
    return entry
