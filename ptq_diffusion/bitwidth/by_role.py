"""Bits by a layer's role, with exceptions by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.roles import UNQUANTIZED, Roles, layer_bits
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.sampler.step import Step


class ByRole(BitwidthPolicy[None]):
    """One choice for the inner layers, one for the first, one for the last; patterns override, the last match wins.

    Args:
        inner: `{weight, activation}` bits of every layer that is neither first nor last, the same at every step.
        first: of the first layer.
        last: of the last layer.
        attention: of its products: `activation` of Q and P, `weight` of K and V.
        patterns: exceptions, each a shell-style pattern of layer names and its bits, such as
            `{name: "*.time_emb_proj", weight: 8, activation: 8}`. 32 bits
            leave a tensor in float.

    Raises:
        ValueError: an entry has other keys than these, or a bitwidth is none.
    """

    by_step = False

    def __init__(
        self,
        inner: Mapping[str, Any],
        first: Mapping[str, Any],
        last: Mapping[str, Any],
        attention: Mapping[str, Any] = UNQUANTIZED,
        patterns: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._inner = layer_bits(inner)
        super().__init__(Roles.of_options(first, last, attention, patterns), [self._inner])

    def plan(self, architecture: Architecture, steps: Sequence[Step], evidence: None = None) -> BitwidthPlan:  # noqa: ARG002
        return self.uniform(architecture, self._inner)
