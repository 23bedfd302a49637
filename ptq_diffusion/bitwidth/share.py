"""Few bits for the earliest share of the steps."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Any

from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.roles import EIGHT_BITS, FOUR_BITS, FOUR_EIGHT, UNQUANTIZED, Roles, layer_bits
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.sampler.step import Step


class Share(BitwidthPolicy[None]):
    """Inner layers get the low bits at the earliest share of the steps, where x_t is nearly noise, the high bits after.

    This is the form in which He et al., NeurIPS 2023, arXiv 2305.10657, publish their switch points. Of S steps the
    first share x S have the low bits, rounded to the nearest whole number, halves up. Share 0 is the high bits
    throughout, share 1 the low ones.

    Args:
        share: 0 to 1.
        low: `{weight, activation}` bits at the earliest steps.
        high: `{weight, activation}` bits at the others.
        first: of the first layer, at every step.
        last: of the last layer, at every step.
        attention: of its products, at every step: `activation` of Q and P, `weight` of K and V.
        patterns: exceptions by name, at every step.

    Raises:
        ValueError: share outside [0, 1], or bits that are none.
    """

    def __init__(
        self,
        share: float = 0.5,
        low: Mapping[str, Any] = FOUR_BITS,
        high: Mapping[str, Any] = FOUR_EIGHT,
        first: Mapping[str, Any] = EIGHT_BITS,
        last: Mapping[str, Any] = EIGHT_BITS,
        attention: Mapping[str, Any] = UNQUANTIZED,
        patterns: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share of the steps from 0 to 1, got {share}")
        self.share, self._low, self._high = share, layer_bits(low), layer_bits(high)
        super().__init__(Roles.of_options(first, last, attention, patterns), [self._low, self._high])

    def plan(self, architecture: Architecture, steps: Sequence[Step], evidence: None = None) -> BitwidthPlan:  # noqa: ARG002
        self.check(architecture, steps)
        early = self.early(len(steps))
        by_step = [self._low] * early + [self._high] * (len(steps) - early)
        return self.roles.uniform(architecture.sites, by_step)

    def early(self, steps: int) -> int:
        """The number of steps, of `steps`, that get the low bits."""
        # The share as it is written, not its neighbour in binary: .225 of 20 is a half.
        return floor(Fraction(str(self.share)) * steps + Fraction(1, 2))
