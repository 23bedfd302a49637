"""Euler's method along the straight path of flow matching."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from ptq_diffusion.sampler.dynamic_shift import DynamicShift
from ptq_diffusion.sampler.flow_options import flow_options
from ptq_diffusion.sampler.form import ddim_form
from ptq_diffusion.sampler.levels import Levels
from ptq_diffusion.sampler.process import FLOW, Process
from ptq_diffusion.sampler.sampler import Sampler, require_steps
from ptq_diffusion.sampler.scheduler import constructed
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

LINEAR, TOKENS = "linear_sigmas", "image_seq_len"
"""Facts of a model's pipeline beside its scheduler: noise levels 1 to 1/n before the shift, and tokens of a state."""


class FlowEuler(Sampler):
    """x_s = x_t + (sigma_s - sigma_t) m of a network that says the flow, m = epsilon - x_0.

    x_t = (1 - sigma_t) x_0 + sigma_t epsilon, Esser et al., ICML 2024, arXiv 2403.03206. Noise levels are those of the
    model's pipeline: shifted by a number, or dynamically by the tokens of its state, and from 1 to 1/n before the shift
    where the pipeline says so, as Flux's does. With
    `stochastic_sampling` all noise is fresh: x_s = (1 - sigma_s) x_0 + sigma_s z.

    Args:
        steps: how many network evaluations.
        scheduler: options that replace those of the model's own scheduler, such as `shift: 3.0`.

    Raises:
        ValueError: steps below 1.
    """

    def __init__(self, steps: int = 20, scheduler: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._count, self._overrides = require_steps(steps), dict(scheduler)

    def table(self, scheduler_config: Mapping[str, Any]) -> Table:
        scheduler = self._scheduler(scheduler_config)
        options = scheduler.config
        facts: dict[str, Any] = {}
        shift = _dynamic_shift(scheduler_config, options) if options.use_dynamic_shifting else None
        if scheduler_config.get(LINEAR):
            facts["sigmas"] = np.linspace(1.0, 1 / self._count, self._count)
        if shift is not None:
            facts["mu"] = shift.mu
        levels = Levels.of(scheduler, self._count, options.num_train_timesteps, **facts)
        steps = tuple(self._step(i, levels, options.stochastic_sampling) for i in range(self._count))
        return Table("flow_euler", FLOW, None, 1.0, steps, shift)

    def _scheduler(self, config: Mapping[str, Any]) -> Any:  # noqa: ANN401
        options = flow_options(config, self._overrides)
        if options.get("invert_sigmas"):
            raise ValueError(
                "expected a model whose noise falls as it samples, got invert_sigmas; set "
                "+sampler.scheduler.invert_sigmas=false"
            )
        return constructed(FlowMatchEulerDiscreteScheduler, options, self._overrides)

    @staticmethod
    def _step(i: int, levels: Levels, stochastic: bool) -> Step:
        sigma_t, sigma_s = levels.sigmas[i : i + 2]
        kept, fresh = (0.0, sigma_s) if stochastic else (sigma_s, 0.0)
        return ddim_form(i, levels.times[i], Process.of_flow(sigma_t), 1 - sigma_s, kept, fresh)


def _dynamic_shift(config: Mapping[str, Any], options: Mapping[str, Any]) -> DynamicShift:
    """The shift of the model's states, as pipelines of Flux and SD3 tell it their schedulers."""
    if config.get(TOKENS) is None:
        raise ValueError(
            "expected a model that says how many tokens its states are, which use_dynamic_shifting reads, got none; "
            "set +sampler.scheduler.use_dynamic_shifting=false"
        )
    return DynamicShift.of(config[TOKENS], options)
