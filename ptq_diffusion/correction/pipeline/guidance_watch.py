"""A check of a stock pipeline's guidance scale, which its network is not given: it is estimated from the states."""

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
        rounding = ROUNDING * float(x_s.square().sum()) ** 0.5
        left = float((rest - scale * slope).square().mean()) ** 0.5
        sigma = torch.as_tensor(self.sigma, device=x_s.device).expand_as(x_s)
        added = float(sigma.square().mean()) ** 0.5
        if abs(left - added) > 0.1 * added + 100 * rounding / x_s.numel() ** 0.5:
            return None
        return scale, float((slope * sigma).square().sum()) ** 0.5 / power + rounding / power**0.5


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
            ValueError: the estimate is another scale than the network's.
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
