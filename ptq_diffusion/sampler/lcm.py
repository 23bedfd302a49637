"""Sampling of latent consistency models: x_0 at every step, and all noise fresh."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import LCMScheduler

from ptq_diffusion.sampler.process import Process
from ptq_diffusion.sampler.sampler import Sampler, require_steps
from ptq_diffusion.sampler.scheduler import build_scheduler, clip_radius, sampling_times
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

SIGMA_DATA = 0.5
"""The deviation of data behind the boundary condition, as in diffusers."""


class LCM(Sampler):
    """x_s = sqrt(abar_s) (c_skip x_t + c_out x_0) + sqrt(1 - abar_s) z, Luo et al., arXiv 2310.04378, algorithm 4.

    c_skip and c_out make x_0 of x_t itself as t falls to 0. Times are a share of those that the model was distilled at,
    the scheduler's `original_inference_steps`.

    Args:
        steps: how many network evaluations.
        scheduler: options that replace those of the model's own scheduler, such as `original_inference_steps: 100`.

    Raises:
        ValueError: steps below 1.
    """

    def __init__(self, steps: int = 4, scheduler: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._count, self._overrides = require_steps(steps), dict(scheduler)

    def table(self, scheduler_config: Mapping[str, Any]) -> Table:
        scheduler = build_scheduler(LCMScheduler, scheduler_config, self._overrides)
        clip, prediction = clip_radius(scheduler.config), scheduler.config.prediction_type
        times = sampling_times(scheduler, self._count)
        # Behind the last time is x_0 itself, whatever set_alpha_to_one says.
        abars = [float(scheduler.alphas_cumprod[t]) for t in times] + [1.0]
        scalings = [scheduler.get_scalings_for_boundary_condition_discrete(t) for t in times]
        steps = [
            _step(i, t, Process.of_abar(abars[i], prediction), abars[i + 1], scalings[i], clip)
            for i, t in enumerate(times)
        ]
        return Table("lcm", prediction, clip, 1.0, tuple(steps))


def _step(i: int, t: int, process: Process, abar_s: float, scalings: tuple[float, float], clip: float | None) -> Step:
    p_x, p_m, _, _ = process.coefficients()
    c_skip, c_out = scalings
    return Step(
        i=i,
        t=t,
        input_scale=1.0,
        c_x=abar_s**0.5 * c_skip,
        c_m=0.0,
        c_0=(abar_s**0.5 * c_out,),
        p_x=p_x,
        p_m=p_m,
        sigma=(1 - abar_s) ** 0.5,
        clip=clip,
        signal=process.signal,
        noise=process.noise,
        direction=None,
    )
