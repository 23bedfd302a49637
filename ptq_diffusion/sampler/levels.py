"""Noise levels of the diffusers schedulers that follow sigma, the ratio of noise to signal or, of a flow, the noise."""

from dataclasses import dataclass
from typing import Any

from diffusers import SchedulerMixin

from ptq_diffusion.sampler.scheduler import timed


@dataclass(frozen=True)
class Levels:
    """Times and noise levels of a schedule.

    Args:
        times: the times that the network is told, one for each step.
        sigmas: the noise level at every step, and the one behind the last.
    """

    times: tuple[float, ...]
    sigmas: tuple[float, ...]

    @classmethod
    def of(cls, scheduler: SchedulerMixin, count: int, last: float, **options: Any) -> "Levels":  # noqa: ANN401
        """The levels that a scheduler chooses for so many steps.

        Args:
            scheduler: with `set_timesteps` and `sigmas`.
            count: the number of steps.
            last: the last time of the training.
            options: others of its `set_timesteps`.

        Raises:
            ValueError: see `timed`, or levels that do not fall from step to step.
        """
        schedule: Any = scheduler
        timed(schedule, count, last, **options)
        times, sigmas = tuple(schedule.timesteps.tolist()), tuple(map(float, schedule.sigmas.tolist()))
        # The last step may end where it begins, at the least noise of the training.
        if not all(after < before for before, after in zip(sigmas[:-2], sigmas[1:-1], strict=True)) or not (
            sigmas[-1] <= sigmas[-2]
        ):
            raise ValueError(
                f"expected noise that falls at each of {count} steps, diffusers gives "
                f"{', '.join(f'{sigma:.3g}' for sigma in sigmas)}; take fewer steps or change sampler.scheduler"
            )
        return cls(times, sigmas)
