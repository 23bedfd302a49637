"""The contract of a sampler: it only computes a table."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import SchedulerMixin

from ptq_diffusion.sampler.step import Step


class Sampler(ABC):
    """A table of step coefficients, taken from the scheduler that the model was saved with."""

    @abstractmethod
    def steps(self, scheduler_config: Mapping[str, Any]) -> Sequence[Step]:
        """The rows in the order of sampling, from t = T down.

        Args:
            scheduler_config: the configuration of a diffusers scheduler, as its `config` or `scheduler_config.json`.

        Raises:
            ValueError: an option of the scheduler that this sampler does not reproduce.
        """


def configured(kind: type[SchedulerMixin], config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A diffusers scheduler of this kind with another's configuration, some options replaced.

    Raises:
        ValueError: the scheduler has no such option, or the configuration is of one without betas, whose process is
            another, or betas that are none.
    """
    if "beta_schedule" not in config:
        raise ValueError(
            f"expected the configuration of a scheduler with a beta_schedule, such as DDPMScheduler, got that of "
            f"{config.get('_class_name')}; use a model that was trained with one"
        )
    options = set(inspect.signature(kind.__init__).parameters) - {"self"}
    if unknown := set(overrides) - options:
        raise ValueError(
            f"expected options of {kind.__name__} in sampler.scheduler, got {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(options))}"
        )
    # diffusers would reset what this private list names to the kind's defaults, replaced options included.
    given = {name: value for name, value in config.items() if name != "_use_default_values"}
    try:
        scheduler = kind.from_config(given | dict(overrides))
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"expected options that {kind.__name__} takes, got the model's with {dict(overrides)}, which it refuses "
            f"({error}); change sampler.scheduler"
        ) from error
    abar = scheduler.alphas_cumprod
    if not ((abar >= 0) & (abar < 1)).all():
        raise ValueError(
            f"expected betas that give 0 <= abar_t < 1 at every time, got {float(abar.min())} to {float(abar.max())}; "
            "change the betas of sampler.scheduler"
        )
    return scheduler


def times(scheduler: Any, count: int) -> Sequence[int]:  # noqa: ANN401
    """The times of `count` steps, from t = T down.

    Raises:
        ValueError: more steps than times of the training, or diffusers gives times outside the training's, as with
            rounding at some counts.
    """
    last = scheduler.config.num_train_timesteps - 1
    if count > last + 1:
        raise ValueError(f"expected sampler.steps of at most {last + 1}, the times of the training, got {count}")
    try:
        scheduler.set_timesteps(count)
    except ValueError as error:
        raise ValueError(
            f"expected steps and a timestep_spacing that diffusers takes, got others ({' '.join(str(error).split())}); "
            "change sampler.steps or +sampler.scheduler.timestep_spacing"
        ) from error
    found = [int(t) for t in scheduler.timesteps]
    if len(found) != count or found[0] > last or found[-1] < 0:
        raise ValueError(
            f"expected {count} times between {last} and 0, diffusers gives {len(found)}, {found[0]} to {found[-1]}; "
            "choose another number of steps, timestep_spacing or steps_offset"
        )
    return found


def prediction(prediction_type: str, abar_t: float) -> tuple[float, float, float, float]:
    """How (x_t, m) gives x_0 and epsilon: (p_x, p_m, e_x, e_m), x_0 = p_x x_t + p_m m, epsilon = e_x x_t + e_m m.

    Salimans & Ho, ICLR 2022, arXiv 2202.00512, for v.

    Raises:
        ValueError: an unknown prediction type, or epsilon where x_t holds no signal.
    """
    signal, noise = abar_t**0.5, (1 - abar_t) ** 0.5
    if prediction_type == "epsilon":
        if signal == 0:
            raise ValueError(
                "expected abar_t > 0 of a model that predicts epsilon, which says nothing of x_0 where it is 0; "
                "set +sampler.scheduler.rescale_betas_zero_snr=false"
            )
        return 1 / signal, -noise / signal, 0.0, 1.0
    if prediction_type == "v_prediction":
        return signal, -noise, noise, signal
    if prediction_type == "sample":
        return 0.0, 1.0, 1 / noise, -signal / noise
    raise ValueError(f"expected prediction_type epsilon, v_prediction or sample, got {prediction_type!r}")


def prediction_type(step: Step) -> str:
    """What the network of a step's table predicts: epsilon, v_prediction or sample.

    Raises:
        ValueError: the coefficients of x_0 belong to none.
    """
    for kind in ("v_prediction", "sample", "epsilon"):
        if prediction(kind, step.abar_t)[:2] == (step.p_x, step.p_m):
            return kind
    raise ValueError(f"expected a step whose x_0 is that of epsilon, v or x_0 itself, at t = {step.t} it is another")


def clip_of(config: Mapping[str, Any]) -> float | None:
    """The radius that a scheduler clips x_0 to, or None.

    Raises:
        ValueError: the scheduler asks for dynamic thresholding, which is not affine and not reproduced.
    """
    if config.get("thresholding"):
        raise ValueError(
            "expected a scheduler without dynamic thresholding; to go on without: +sampler.scheduler.thresholding=false"
        )
    return float(config["clip_sample_range"]) if config["clip_sample"] else None
