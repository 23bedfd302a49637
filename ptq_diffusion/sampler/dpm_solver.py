"""DPM-Solver++ of first and second order, without and with fresh noise."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from diffusers import DPMSolverMultistepScheduler

from ptq_diffusion.sampler.flow_options import with_flow_sigmas
from ptq_diffusion.sampler.form import ddim_form
from ptq_diffusion.sampler.levels import Levels
from ptq_diffusion.sampler.process import FLOW, Process
from ptq_diffusion.sampler.sampler import Sampler, require_steps
from ptq_diffusion.sampler.scheduler import build_scheduler, clip_radius
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

FEW = 15
"""Steps below which the last one falls back to first order, as `lower_order_final` of the scheduler says."""
OURS = {"solver_order": "order", "algorithm_type": "sde"}
"""Options of the scheduler that the sampler has by a name of its own."""


class DPMSolver(Sampler):
    """DPM-Solver++, Lu et al., arXiv 2211.01095: exact in what is linear, x_0 constant or linear in log-SNR.

    With h the growth of lambda = log(signal / noise) over the step, r the ratio of the growth before to h, and D the
    prediction of x_0 less the one before, divided by r:
    x_s = (noise_s / noise_t) x_t + w x_0 + (w / 2) D with w = signal_s (1 - e^-h) and, of the SDE,
    x_s = (noise_s / noise_t) e^-h x_t + w x_0 + (w / 2) D + sigma z with w = signal_s (1 - e^-2h).
    First order is DDIM with eta 0, and of the SDE with eta 1. The first step is of first order, and so is the last
    where there are few steps or the noise ends at 0.

    It serves models of flow matching too. As in diffusers nothing is clipped, also where the model's own scheduler
    clips x_0.

    Args:
        steps: how many network evaluations.
        order: 1, or 2 for the multistep solver of second order (2M).
        sde: add fresh noise at every step.
        scheduler: options that replace those of the model's own scheduler, such as `use_karras_sigmas: true`.

    Raises:
        ValueError: steps below 1, or an order of neither kind.
    """

    def __init__(
        self,
        steps: int = 20,
        order: Literal[1, 2] = 2,
        sde: bool = False,
        scheduler: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        if order not in (1, 2):
            raise ValueError(f"expected order to be 1 or 2, got {order}")
        if named := sorted(OURS.keys() & scheduler.keys()):
            raise ValueError(
                f"expected sampler.scheduler without {named[0]}, which the sampler itself has; set "
                f"sampler.{OURS[named[0]]}"
            )
        self._count, self.order, self.sde, self._overrides = require_steps(steps), order, sde, dict(scheduler)

    def table(self, scheduler_config: Mapping[str, Any]) -> Table:
        kind = "sde-dpmsolver++" if self.sde else "dpmsolver++"
        ours = {"solver_order": self.order, "algorithm_type": kind}
        config = with_flow_sigmas(scheduler_config)
        scheduler: Any = build_scheduler(DPMSolverMultistepScheduler, config, self._overrides | ours)
        options = scheduler.config
        clip_radius(options)
        if options.use_flow_sigmas is not (options.prediction_type == FLOW):
            raise ValueError(
                f"expected use_flow_sigmas with prediction_type={FLOW} and with no other, got "
                f"{options.use_flow_sigmas} with {options.prediction_type}; change sampler.scheduler"
            )
        levels = Levels.of(scheduler, self._count, options.num_train_timesteps - (not options.use_flow_sigmas))
        steps = tuple(self._step(i, levels, options) for i in range(self._count))
        return Table("dpm_solver", options.prediction_type, None, 1.0, steps)

    def _step(self, i: int, levels: Levels, options: Any) -> Step:  # noqa: ANN401
        here, there = (_process(sigma, options) for sigma in levels.sigmas[i : i + 2])
        decay = there.noise * here.signal / (there.signal * here.noise)  # e^-h
        direction = there.noise * (decay if self.sde else 1.0)
        sigma = there.noise * (1 - decay**2) ** 0.5 if self.sde else 0.0
        first = ddim_form(i, levels.times[i], here, there.signal, direction, sigma)
        if self.order == 1:
            return first
        if not self._second(i, options):
            # The next step reads the prediction of this one, which itself reads none.
            return _multistep(first, (there.signal,) if i == self._count - 1 else (there.signal, 0.0))
        slope = self._slope(decay, options.solver_type) * there.signal
        before, now = (_log_snr(_process(sigma, options)) for sigma in levels.sigmas[i - 1 : i + 1])
        on_difference = slope * -math.log(decay) / (now - before)
        return _multistep(first, (there.signal + on_difference, -on_difference))

    def _second(self, i: int, options: Any) -> bool:  # noqa: ANN401
        """Whether a step is of second order."""
        last = options.euler_at_final or options.final_sigmas_type == "zero"
        few = options.lower_order_final and self._count < FEW
        return i > 0 and not (i == self._count - 1 and (last or few))

    def _slope(self, decay: float, solver_type: str) -> float:
        """The coefficient of D over signal_s: half of w, or the integral of x_0's growth over the step, as by Heun."""
        if solver_type == "midpoint":
            return (1 - decay ** (2 if self.sde else 1)) / 2
        h = -math.log(decay) * (2 if self.sde else 1)
        if h == 0:  # A step that ends where it begins, as the last of some schedules with final_sigmas_type=sigma_min.
            return 0.0
        return 1 - (1 - math.exp(-h)) / h


def _process(sigma: float, options: Any) -> Process:  # noqa: ANN401
    if options.use_flow_sigmas:
        return Process.of_flow(sigma)
    return Process.of_ratio(sigma, options.prediction_type)


def _log_snr(process: Process) -> float:
    """lambda, half the logarithm of the signal-to-noise ratio."""
    return math.log(process.signal / process.noise)


def _multistep(step: Step, c_0: tuple[float, ...]) -> Step:
    """A step with coefficients of earlier predictions, from whose time no other step can start."""
    return dataclasses.replace(step, c_0=c_0, direction=None)
