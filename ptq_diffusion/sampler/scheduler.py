"""A diffusers scheduler from the configuration that a model was saved with, and its times and clipping for samplers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import DDPMScheduler, SchedulerMixin

from ptq_diffusion.sampler.scheduler_options import SAME_DEFAULTS, scheduler_options

DDPM_SCHEDULES = ("laplace", "sigmoid")
"""Values of beta_schedule that DDPMScheduler alone knows."""


def build_scheduler(kind: type[SchedulerMixin], config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A diffusers scheduler of this kind with another's configuration, some options replaced.

    Raises:
        ValueError: what `scheduler_options` refuses, options that the scheduler refuses, or betas that are none.
    """
    options = scheduler_options(kind, config, overrides)
    scheduler = constructed(kind, _with_betas(kind, options), overrides)
    abar = scheduler.alphas_cumprod
    if kind.__name__ not in SAME_DEFAULTS and options.get("rescale_betas_zero_snr"):
        abar = abar[:-1]  # Schedulers that follow sigma, which would be infinite, put a small number in the last place.
    if not ((abar >= 0) & (abar < 1)).all() or not (abar[:-1] > 0).all() or not (abar.diff() <= 0).all():
        raise ValueError(
            "expected betas that give 0 <= abar_t < 1, falling and 0 at the last time at most, got "
            f"{float(abar.min())} to {float(abar.max())}; change the betas of sampler.scheduler"
        )
    return scheduler


def constructed(kind: type[SchedulerMixin], options: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A diffusers scheduler of these options.

    Raises:
        ValueError: the scheduler refuses them; the message gives those that replace a model's own.
    """
    came = f"the model's with {dict(overrides)}, which it refuses"
    with refused_by_diffusers(f"options that {kind.__name__} takes", came, "change sampler.scheduler"):
        return kind(**options)


@contextmanager
def refused_by_diffusers(expected: str, came: str, remedy: str) -> Iterator[None]:
    """Within this context, which is to hold calls of diffusers alone, its errors are refusals of options.

    Raises:
        ValueError: in place of every error but that of a library that is not installed.
    """
    try:
        yield
    except ImportError:
        raise
    # diffusers checks few options: what others end in may be any error.
    except Exception as error:
        raise ValueError(f"expected {expected}, got {came} ({' '.join(str(error).split())}); {remedy}") from error


def _with_betas(kind: type[SchedulerMixin], options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, with the betas themselves in place of a schedule that only DDPMScheduler knows."""
    if kind is DDPMScheduler or options["trained_betas"] is not None or options["beta_schedule"] not in DDPM_SCHEDULES:
        return options
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    # A zero terminal signal, where it is asked for, is made of these betas by the scheduler itself.
    return {**options, "trained_betas": DDPMScheduler(**{name: options[name] for name in names}).betas.tolist()}


def sampling_times(scheduler: Any, count: int) -> Sequence[int]:  # noqa: ANN401
    """The times of `count` steps, from t = T down; see `timed`."""
    timed(scheduler, count, scheduler.config.num_train_timesteps - 1)
    return [int(t) for t in scheduler.timesteps]


def timed(scheduler: Any, count: int, last: float, **options: Any) -> None:  # noqa: ANN401
    """Let a scheduler choose the times of `count` steps.

    Args:
        scheduler: with `set_timesteps`.
        count: the number of steps.
        last: the last time of the training.
        options: others of its `set_timesteps`.

    Raises:
        ValueError: more steps than times of the training, times that the scheduler cannot make, or diffusers gives
            times outside the training's, as with rounding at some counts.
    """
    most = scheduler.config.num_train_timesteps
    if count > most:
        raise ValueError(f"expected sampler.steps of at most {most}, the times of the training, got {count}")
    expected, remedy = "steps and options of the scheduler", "change sampler.steps or sampler.scheduler"
    with refused_by_diffusers(f"{expected} that diffusers takes", "others", remedy):
        scheduler.set_timesteps(count, **options)
    times = scheduler.timesteps.tolist()
    # The last is not below 0: offsets are not, and rounding adds a time to the list where it gives one.
    if len(times) != count or not times[0] <= last:
        raise ValueError(
            f"expected {count} times between {last:.9g} and 0, diffusers gives {len(times)}, {times[0]:.9g} to "
            f"{times[-1]:.9g}; choose another number of steps, timestep_spacing or steps_offset"
        )


def clip_radius(config: Mapping[str, Any]) -> float | None:
    """The radius that a scheduler clips x_0 to, or None, as of one that never clips.

    Raises:
        ValueError: the scheduler asks for dynamic thresholding, which is not affine and not reproduced.
    """
    if config.get("thresholding"):
        raise ValueError(
            "expected a scheduler without dynamic thresholding; to go on without: +sampler.scheduler.thresholding=false"
        )
    return float(config["clip_sample_range"]) if config.get("clip_sample") else None
