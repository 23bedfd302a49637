"""The only sampling loop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


@dataclass(frozen=True)
class Visit:
    """One step as the loop shows it: the state x_t, the output m used there, and the next state x_s."""

    step: Step
    x_t: Tensor
    m: Tensor
    x_s: Tensor


def sample(
    predict: Callable[[Tensor, Step], Tensor],
    table: Table,
    noise: SampleNoise,
    sigma: Callable[[Step, Tensor | None], float | Tensor] = Step.spread,
    device: torch.device | str = "cpu",
) -> Iterator[Visit]:
    """Walk from noise to x_0; the last visit's x_s is x_0.

    Noise is drawn at every step, even where sigma is 0, so that samplers and corrections share the same noise.

    Args:
        predict: from (x_t, step) to the output m, corrected or not, (B, C, H, W); or with the variance that the
            network says behind it, (B, 2 C, H, W), which a step of a learned variance reads and others drop.
        table: the sampler's table.
        noise: the noise of this batch of samples.
        sigma: the standard deviation to use at a step in place of the table's, from the step and a learned variance.
        device: where the states live.

    Raises:
        FloatingPointError: the output of a step is not finite.
        ValueError: the variance of a step is learned, and the network says nothing of it.
    """
    state = table.start(noise.draw(device))
    for step in table:
        m, variance = step.parted(predict(state.x, step), state.x.shape[1])
        following = step.advance(state, m, sigma(step, variance), noise.draw(device))
        if not torch.isfinite(following.x).all():
            raise FloatingPointError(
                f"the state after step {step.i} (t = {step.t}) is not finite; check the model's weights "
                "and the scale of guidance, or raise the number of bits"
            )
        yield Visit(step, state.x, m, following.x)
        state = following
