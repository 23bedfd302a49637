"""The fewest bits whose noise is below the noise of the forward process, at every step."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.policy import BitwidthPolicy, require_ascending
from ptq_diffusion.bitwidth.roles import EIGHT_BITS, FOUR_BITS, FOUR_EIGHT, UNQUANTIZED, Roles, layer_bits
from ptq_diffusion.bitwidth.step_signal import Ratio, StepSignal
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.sampler.step import Step


class StepSNR(BitwidthPolicy[StepSignal]):
    """PTQD's rule: at each step the fewest offered bits for which SNR_Q(t) > SNR_F(t), else the most.

    He et al., NeurIPS 2023, arXiv 2305.10657, section 4.4. SNR_Q is |m| / |D| of the network's output m and the error D
    that the bits cause, SNR_F = abar_t / (1 - abar_t) that of x_t. All inner layers have the same bits at a step. Not
    to be confused with `Share`, which takes the switch points that the paper publishes; this rule does not give them.

    D is measured before bits are chosen: with weights rounded to nearest and searched scales of activations, whatever
    `rounding` and `activation_scales` give the network afterwards. With integers that have less error, such as those of
    GPTQ, steps may get more bits than they need.

    Args:
        offered: `{weight, activation}` bits in ascending order of bit operations. Weights of several bitwidths are
            stored once for each.
        ratio: `norm` for |m| / |D|, `power` for its square.
        first: of the first layer, at every step.
        last: of the last layer, at every step.
        attention: of its products, at every step: `activation` of Q and P, `weight` of K and V.
        patterns: exceptions by name, at every step.

    Raises:
        ValueError: offers that do not ascend, or bits that are none.
    """

    reads: ClassVar[Evidence] = Evidence.STEP_SNR

    def __init__(
        self,
        offered: Sequence[Mapping[str, Any]] = (FOUR_BITS, FOUR_EIGHT),
        ratio: Ratio = "norm",
        first: Mapping[str, Any] = EIGHT_BITS,
        last: Mapping[str, Any] = EIGHT_BITS,
        attention: Mapping[str, Any] = UNQUANTIZED,
        patterns: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(Roles.of_options(first, last, attention, patterns), [layer_bits(entry) for entry in offered])
        require_ascending(self.offered)
        self.ratio: Ratio = ratio

    def plan(self, architecture: Architecture, steps: Sequence[Step], evidence: StepSignal) -> BitwidthPlan:
        self.check(architecture, steps)
        if evidence.steps != len(steps):
            raise ValueError(
                f"expected a measurement of {len(steps)} steps, got one of {evidence.steps}; measure again"
            )
        snr = evidence.snr(self.offered, self.ratio).tolist()
        by_step = [
            next((bits for bits, row in zip(self.offered, snr, strict=True) if row[i] > step.snr), self.offered[-1])
            for i, step in enumerate(steps)
        ]
        return self.roles.uniform(architecture.sites, by_step)
