"""A check of a stock pipeline's guidance, which its network is not told: it is estimated from the states."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.sampler.step import Step

SURE = 6.0
"""Standard errors that an estimate lies off before a scale counts as another one."""
CLOSE = 0.01
"""The share of a scale that an estimate may always lie off."""
ROUNDING = 1e-6
"""The relative error of a state's numbers, float32."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuidedAnswers:
    """The rows that a network was asked about at a step, two for each image, and what it answered.

    Args:
        x_t: the states of the images, (B, C, H, W).
        first: the answers of the first rows, (B, C, H, W).
        second: those of the second rows.
        step: the row of the table.
        sigma: the standard deviation of the noise that the scheduler adds, one for all or of every pixel.
    """

    x_t: Tensor
    first: Tensor
    second: Tensor
    step: Step
    sigma: float | Tensor

    def scale(self, x_s: Tensor) -> tuple[float, float] | None:
        """The scale s of m = first + s (second - first) that led to a state, and its standard error.

        x_s = F(m) + sigma z is linear in s where x_0 is not clipped, so that s is found by least squares.

        Args:
            x_s: the state behind the step, (B, C, H, W).

        Returns:
            None where the state tells nothing: the answers are equal, or it came about in another way.
        """
        if self.step.clip is not None or len(self.step.c_0) > 1:
            return None
        rest, slope = x_s - self.step.mean(self.x_t, self.first), self.step.gain * (self.second - self.first)
        power = float(slope.square().sum())
        if power == 0:
            return None
        scale = float((rest * slope).sum()) / power
        if not self._is_noise(rest - scale * slope, x_s):
            return None
        sigma, rounding = self._sigma(x_s), ROUNDING * float(x_s.square().sum()) ** 0.5
        return scale, float((slope * sigma).square().sum()) ** 0.5 / power + rounding / power**0.5

    def is_rescaled(self, x_s: Tensor, scale: float) -> bool:
        """Whether each image's m was multiplied by a factor of its own, as `guidance_rescale` does.

        It gives m the standard deviation of the conditional answer (Lin et al., arXiv 2305.08891, section 3.4).

        Args:
            x_s: the state behind the step, (B, C, H, W).
            scale: of the guidance whose m was multiplied.
        """
        if self.step.clip is not None or len(self.step.c_0) > 1:
            return False
        m = self.first + scale * (self.second - self.first)
        rest = (x_s - self.step.mean(self.x_t, torch.zeros_like(m))).flatten(1)
        slope = (self.step.gain * m).flatten(1)
        power = slope.square().sum(1)
        factor = (rest * slope).sum(1) / power
        if not self._is_noise(rest - factor[:, None] * slope, x_s):
            return False
        error = (slope * self._sigma(x_s).flatten(1)).square().sum(1).sqrt() / power
        return bool(((factor - 1).abs() > torch.clamp(SURE * error, min=CLOSE)).any())

    def _sigma(self, x_s: Tensor) -> Tensor:
        return torch.as_tensor(self.sigma, device=x_s.device).expand_as(x_s)

    def _is_noise(self, left: Tensor, x_s: Tensor) -> bool:
        """Whether what a fit leaves of a state is as large as the noise that was added, up to rounding."""
        added = float(self._sigma(x_s).square().mean()) ** 0.5
        rounding = ROUNDING * float(x_s.square().mean()) ** 0.5
        return abs(float(left.square().mean()) ** 0.5 - added) <= 0.1 * added + 100 * rounding


class GuidanceWatch:
    """Refuses, from the second step on, a pipeline whose states show another scale than its network was corrected for.

    Args:
        scale: of the network; 1 of one without guidance.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._last: GuidedAnswers | None = None

    def before(self, rows: Tensor, step: Step) -> None:
        """Estimate the scale from the rows of this step, (2 B, C, H, W) if guided, and the answers one step before.

        Raises:
            ValueError: the estimate is another scale than the network's, or the pipeline rescales what it guides.
        """
        last, self._last = self._last, None
        doubled = doubled_state(rows)
        if doubled is None:
            if step.i == 0 and self.scale != 1:
                log.warning(
                    "asked without guidance, and corrected for guidance_scale=%g; call the pipeline with it", self.scale
                )
            return
        if last is None or last.step.i + 1 != step.i or last.x_t.shape != doubled.shape:
            return
        if last.step.input_scale != 1 or step.input_scale != 1:
            # The rows may be states or scaled inputs, depending on the pipeline.
            return
        if (estimate := last.scale(doubled)) is None:
            self._require_as_combined(last, doubled)
            return
        scale, error = estimate
        # A DiTPipeline asks about the condition first, which swaps the two: s and 1 - s.
        estimated = max(scale, 1 - scale)
        if abs(estimated - self.scale) > max(SURE * error, CLOSE * self.scale):
            raise ValueError(
                f"expected guidance_scale={self.scale:g}, which the network was corrected for, got about "
                f"{estimated:.3g}; call the pipeline with guidance_scale={self.scale:g}, or export it with "
                f"condition.guidance.scale={estimated:.3g}"
            )

    def _require_as_combined(self, last: GuidedAnswers, x_s: Tensor) -> None:
        """Refuse states of a combination that was multiplied by a factor, whichever row stands first."""
        if any(last.is_rescaled(x_s, scale) for scale in (self.scale, 1 - self.scale)):
            raise ValueError(
                "expected guidance without guidance_rescale, as the network was corrected for, got states of a "
                "combination that was multiplied by a factor; leave guidance_rescale out of the pipeline's call"
            )

    def behind(self, rows: Tensor, answers: Tensor, step: Step, sigma: float | Tensor) -> None:
        """Remember the rows, (2 B, C, H, W), and the answers, until the next step; the first rows are those kept."""
        if (doubled := doubled_state(rows)) is not None:
            first, second = answers.chunk(2)
            sigma = sigma.chunk(2)[0] if isinstance(sigma, Tensor) else sigma
            self._last = GuidedAnswers(doubled, first, second, step, sigma)


def doubled_state(rows: Tensor) -> Tensor | None:
    """The first half of rows whose second half is the same, as stock pipelines ask for guidance; else None."""
    if len(rows) % 2:
        return None
    first, second = rows.chunk(2)
    return first if bool((first == second).all()) else None
