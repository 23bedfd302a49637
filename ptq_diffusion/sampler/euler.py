"""Euler's method in the noise level, without and with fresh noise."""

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, SchedulerMixin

from ptq_diffusion.sampler.form import ddim_form, from_scaled
from ptq_diffusion.sampler.levels import Levels
from ptq_diffusion.sampler.process import Process
from ptq_diffusion.sampler.sampler import Sampler, require_steps
from ptq_diffusion.sampler.scheduler import build_scheduler
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class EulerSteps(Sampler):
    """Steps along x_0 + sigma epsilon, from one noise level sigma_t to the next, Karras et al., NeurIPS 2022.

    diffusers keeps the state as x_0 + sigma epsilon and divides it by sqrt(1 + sigma^2) before the network sees it.
    Here a state is what the network sees, x_t = (x_0 + sigma epsilon) / sqrt(1 + sigma^2), of the process that
    preserves variance: so the gains of one time are those of other samplers, and pipelines that scale nothing serve
    too. The last state, x_0, is diffusers' own. x_T = z; the first row scales it to the noise that diffusers begins
    with.

    As in diffusers nothing is clipped, also where the model's own scheduler clips x_0.

    Args:
        steps: how many network evaluations.
        scheduler: options that replace those of the model's own scheduler, such as `timestep_spacing: trailing`.

    Raises:
        ValueError: steps below 1.
    """

    name: ClassVar[str]
    kind: ClassVar[type[SchedulerMixin]]

    def __init__(self, steps: int = 20, scheduler: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._count, self._overrides = require_steps(steps), dict(scheduler)

    @staticmethod
    @abstractmethod
    def fresh(sigma_t: float, sigma_s: float) -> float:
        """The noise that a step adds, of the noise level sigma_s that it ends at."""

    def table(self, scheduler_config: Mapping[str, Any]) -> Table:
        scheduler: Any = build_scheduler(self.kind, scheduler_config, self._overrides)
        options = scheduler.config
        levels = Levels.of(scheduler, self._count, options.num_train_timesteps - 1)
        steps = [self._step(i, levels, options.prediction_type) for i in range(self._count)]
        if options.timestep_spacing != "leading":
            # diffusers begins with the noise sigma z alone, without the variance 1 that a signal would have.
            steps[0] = from_scaled(steps[0], steps[0].noise)
        return Table(self.name, options.prediction_type, None, 1.0, tuple(steps))

    def _step(self, i: int, levels: Levels, prediction: str) -> Step:
        sigma_t, sigma_s = levels.sigmas[i : i + 2]
        size = 1.0 if i == self._count - 1 else (1 + sigma_s**2) ** 0.5
        fresh = self.fresh(sigma_t, sigma_s)
        direction = max(sigma_s**2 - fresh**2, 0.0) ** 0.5
        process = Process.of_ratio(sigma_t, prediction)
        return ddim_form(i, levels.times[i], process, 1 / size, direction / size, fresh / size)


class Euler(EulerSteps):
    """x_s = x_t + (sigma_s - sigma_t) epsilon before it is scaled: DDIM without noise at Euler's times.

    Algorithm 1 of Karras et al. without churn; options of the scheduler choose Karras's, exponential or beta sigmas.
    """

    name, kind = "euler", EulerDiscreteScheduler

    @staticmethod
    def fresh(sigma_t: float, sigma_s: float) -> float:  # noqa: ARG004
        return 0.0


class EulerAncestral(EulerSteps):
    """x_s = x_t + (sigma_down - sigma_t) epsilon + sigma_up z before it is scaled: DDIM with eta 1 at Euler's times.

    sigma_up^2 = sigma_s^2 (1 - sigma_s^2 / sigma_t^2) and sigma_down^2 + sigma_up^2 = sigma_s^2. A network that
    predicts x_0 is served too, which diffusers' scheduler does not do.
    """

    name, kind = "euler_ancestral", EulerAncestralDiscreteScheduler

    @staticmethod
    def fresh(sigma_t: float, sigma_s: float) -> float:
        return sigma_s * (1 - (sigma_s / sigma_t) ** 2) ** 0.5
