"""DDIM with a share eta of DDPM's noise."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import DDIMScheduler

from ptq_diffusion.sampler.form import ddim_form
from ptq_diffusion.sampler.process import Process
from ptq_diffusion.sampler.sampler import Sampler, require_steps
from ptq_diffusion.sampler.scheduler import build_scheduler, clip_radius, sampling_times
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class DDIM(Sampler):
    """x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s - sigma^2) epsilon + sigma z, Song et al., ICLR 2021, arXiv 2010.02502.

    Epsilon is the one that the unclipped output implies, as in diffusers. eta = 1 without clipping is DDPM with the
    small variance; eta = 0 is deterministic.

    Args:
        steps: how many network evaluations.
        eta: 0 to 1, the share of DDPM's noise.
        scheduler: options that replace those of the model's own scheduler, such as `timestep_spacing: trailing`.

    Raises:
        ValueError: eta outside [0, 1] or steps below 1.
    """

    def __init__(self, steps: int = 20, eta: float = 1.0, scheduler: Mapping[str, Any] = MappingProxyType({})) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"expected eta in [0, 1], got {eta}")
        self._count, self.eta, self._overrides = require_steps(steps), eta, dict(scheduler)

    def table(self, scheduler_config: Mapping[str, Any]) -> Table:
        scheduler = build_scheduler(DDIMScheduler, scheduler_config, self._overrides)
        times, stride = sampling_times(scheduler, self._count), scheduler.config.num_train_timesteps // self._count
        steps = tuple(self._step(scheduler, i, t, t - stride) for i, t in enumerate(times))
        return Table("ddim", scheduler.config.prediction_type, clip_radius(scheduler.config), 1.0, steps)

    def _step(self, scheduler: DDIMScheduler, i: int, t: int, s: int) -> Step:
        abar_t = float(scheduler.alphas_cumprod[t])
        abar_s = float(scheduler.alphas_cumprod[s] if s >= 0 else scheduler.final_alpha_cumprod)
        sigma = self.eta * ((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)) ** 0.5
        direction = max(1 - abar_s - sigma**2, 0.0) ** 0.5
        process = Process.of_abar(abar_t, scheduler.config.prediction_type)
        return ddim_form(i, t, process, abar_s**0.5, direction, sigma, clip_radius(scheduler.config))
