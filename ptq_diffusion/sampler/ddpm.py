"""Ancestral DDPM sampling."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import DDPMScheduler

from ptq_diffusion.sampler.process import Process
from ptq_diffusion.sampler.sampler import Sampler, require_steps
from ptq_diffusion.sampler.scheduler import build_scheduler, clip_radius, sampling_times
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

LEAST = 1e-20
"""The least variance that diffusers takes a logarithm of: the posterior's is 0 at a step to x_0."""


class DDPM(Sampler):
    """The posterior mean of q(x_s | x_t, x_0) plus noise, Ho et al., NeurIPS 2020, arXiv 2006.11239, equations 6 and 7.

    The variance is the scheduler's: fixed_small, fixed_small_log, fixed_large, or learned_range, of a network that says
    at every pixel where between the first and the last of these it lies, see `Step.spread`.

    Args:
        steps: how many network evaluations; fewer than the training's skip times, as in diffusers.
        scheduler: options that replace those of the model's own scheduler, such as `variance_type: fixed_large`.

    Raises:
        ValueError: steps below 1.
    """

    def __init__(self, steps: int = 20, scheduler: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._count, self._overrides = require_steps(steps), dict(scheduler)

    def table(self, scheduler_config: Mapping[str, Any]) -> Table:
        scheduler = build_scheduler(DDPMScheduler, scheduler_config, self._overrides)
        steps = tuple(self._step(scheduler, i, t) for i, t in enumerate(sampling_times(scheduler, self._count)))
        return Table("ddpm", scheduler.config.prediction_type, clip_radius(scheduler.config), 1.0, steps)

    def _step(self, scheduler: DDPMScheduler, i: int, t: int) -> Step:
        s = int(scheduler.previous_timestep(t))
        abar_t = float(scheduler.alphas_cumprod[t])
        abar_s = float(scheduler.alphas_cumprod[s]) if s >= 0 else 1.0
        alpha = abar_t / abar_s
        process = Process.of_abar(abar_t, scheduler.config.prediction_type)
        p_x, p_m, _, _ = process.coefficients()
        sigma, sigma_high = _sigmas(scheduler.config.variance_type, abar_t, abar_s) if t > 0 else (0.0, None)
        return Step(
            i=i,
            t=t,
            input_scale=1.0,
            c_x=alpha**0.5 * (1 - abar_s) / (1 - abar_t),
            c_m=0.0,
            c_0=(abar_s**0.5 * (1 - alpha) / (1 - abar_t),),
            p_x=p_x,
            p_m=p_m,
            sigma=sigma,
            clip=clip_radius(scheduler.config),
            signal=process.signal,
            noise=process.noise,
            direction=None,
            sigma_high=sigma_high,
        )


def _sigmas(variance_type: str, abar_t: float, abar_s: float) -> tuple[float, float | None]:
    """The standard deviation of the noise, or both ends of a learned one."""
    beta = 1 - abar_t / abar_s
    posterior = (1 - abar_s) / (1 - abar_t) * beta
    if variance_type in ("fixed_small", "fixed_small_log"):
        return posterior**0.5, None
    if variance_type == "fixed_large":
        return beta**0.5, None
    if variance_type == "learned_range":
        return max(posterior, LEAST) ** 0.5, beta**0.5
    raise ValueError(
        f"expected variance_type fixed_small, fixed_small_log, fixed_large or learned_range, got {variance_type!r}; "
        "set +sampler.scheduler.variance_type to one of these"
    )
