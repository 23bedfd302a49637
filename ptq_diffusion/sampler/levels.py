"""Noise levels of the diffusers schedulers that follow sigma, the ratio of noise to signal, from step to step."""

from dataclasses import dataclass
from typing import Any

from diffusers import SchedulerMixin


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
            ValueError: more steps than times of the training, or levels that the scheduler cannot make, or that do not
                fall from step to step.
        """
        schedule: Any = scheduler
        most = schedule.config.num_train_timesteps
        if count > most:
            raise ValueError(f"expected sampler.steps of at most {most}, the times of the training, got {count}")
        try:
            schedule.set_timesteps(count, **options)
        except (ValueError, IndexError, ZeroDivisionError, FloatingPointError) as error:
            raise ValueError(
                "expected steps and sigmas that diffusers takes, got others "
                f"({' '.join(str(error).split())}); change sampler.steps or sampler.scheduler"
            ) from error
        times, sigmas = tuple(schedule.timesteps.tolist()), tuple(map(float, schedule.sigmas.tolist()))
        if len(times) != count or times[0] > last:
            raise ValueError(
                f"expected {count} times between {last:g} and 0, diffusers gives {len(times)}, {times[0]:g} to "
                f"{times[-1]:g}; choose another number of steps, timestep_spacing or steps_offset"
            )
        # The last step may end where it begins, at the least noise of the training.
        if not all(after < before for before, after in zip(sigmas[:-2], sigmas[1:-1], strict=True)) or not (
            sigmas[-1] <= sigmas[-2]
        ):
            raise ValueError(
                f"expected noise that falls at each of {count} steps, diffusers gives "
                f"{', '.join(f'{sigma:.3g}' for sigma in sigmas)}; take fewer steps or change sampler.scheduler"
            )
        return cls(times, sigmas)
