"""The options that a sampler takes from a model's scheduler, each there and of its type."""

import inspect
import logging
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

from diffusers import DPMSolverMultistepScheduler, SchedulerMixin, schedulers

from ptq_diffusion.sampler.process import FLOW
from ptq_diffusion.sampler.scheduler_values import NOT_READ, require_values

SAME_DEFAULTS = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler")
"""Classes whose configurations may leave out values that equal a default: DDIM and DDPM have the same ones."""
ABSENT = {"trained_betas": None, "thresholding": False, "rescale_betas_zero_snr": False}
"""The behaviour of every scheduler that has no such option."""
TRAINING = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""Options of the training, which only the configuration or the class that it names can say."""
FLOW_CLASSES = "FlowMatch"
"""The beginning of the names of schedulers of flow matching."""
ADVICE = {"clip_sample": "false", "set_alpha_to_one": "true", "variance_type": "fixed_small"}
log = logging.getLogger(__name__)


def scheduler_options(
    kind: type[SchedulerMixin], config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a scheduler of this kind, from another's configuration and the options that replace its own.

    A configuration may leave out what equals a default of the class that it names, which is said in the log, but for
    DDIM and DDPM, whose defaults are the same; what its class does not have it may not. A live `config` does not tell
    its class: one without `set_alpha_to_one` is complete, of a class that ends at x_0 itself. Schedulers of other kinds
    than these two have options of their own, such as Karras's sigmas, of which the model's configuration may say
    nothing: there, as in diffusers, they have their defaults.

    Raises:
        ValueError: the scheduler has no such option, the configuration is of one without betas, whose process is
            another, or lacks options, or a value is of another type or out of range.
    """
    name = config.get("_class_name")
    saved = _class_defaults(name, kind)
    flow = is_of_flow(config) and kind is not DPMSolverMultistepScheduler
    if flow or "beta_schedule" not in {**saved, **config}:
        remedy = "set sampler=flow_euler" if flow else "use a model that was trained with one"
        raise ValueError(
            f"expected the configuration of a scheduler with a beta_schedule, such as DDPMScheduler, got that of "
            f"{name}{', of flow matching' * flow}; {remedy}"
        )
    own = _arguments(kind)
    require_known(overrides, own.keys(), kind.__name__)
    said = {**config, **overrides}
    options = {key: value for key, value in (_defaults(kind, own, name, saved) | said).items() if key in own}
    _require_all(options, set(own), str(name))
    require_values(options)
    if name not in SAME_DEFAULTS:
        _say_taken(str(name), ", ".join(_taken(saved, own.keys() - said.keys())))
    return options


def is_of_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is that of a model of flow matching."""
    named = str(config.get("_class_name", "")).startswith(FLOW_CLASSES)
    # A live configuration does not tell its class.
    alike = "shift_terminal" in config and "beta_schedule" not in config
    return named or alike or config.get("prediction_type") == FLOW


def _arguments(kind: type[SchedulerMixin]) -> Mapping[str, Any]:
    """The defaults of the options of a class of schedulers."""
    parameters = inspect.signature(kind.__init__).parameters
    return {key: option.default for key, option in parameters.items() if key != "self"}


def _class_defaults(name: object, kind: type[SchedulerMixin]) -> Mapping[str, Any]:
    """The defaults of the class of diffusers that a configuration names, for a scheduler of this kind; none of others.

    Schedulers of other kinds than DDIM and DDPM take what the training was, and sample as their own defaults say.
    """
    named = getattr(schedulers, name, None) if isinstance(name, str) else None
    if not (isinstance(named, type) and issubclass(named, SchedulerMixin)):
        return {}
    return {key: value for key, value in _arguments(named).items() if kind.__name__ in SAME_DEFAULTS or key in TRAINING}


def _defaults(
    kind: type[SchedulerMixin], own: Mapping[str, Any], name: str | None, saved: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of options that a configuration of the class `name`, whose defaults are `saved`, leaves out."""
    if kind.__name__ in SAME_DEFAULTS:
        live = {} if name else {"set_alpha_to_one": True}
        return dict(own) if name in SAME_DEFAULTS else {**ABSENT, **live, **saved}
    return {**{key: value for key, value in own.items() if key not in TRAINING}, **saved}


def _taken(saved: Mapping[str, Any], missing: Collection[str]) -> list[str]:
    """Missing options and their values, but for those of every scheduler that has no such option."""
    return [f"{key}={value}" for key, value in saved.items() if key in missing and (key, value) not in ABSENT.items()]


@cache
def _say_taken(name: str, taken: str) -> None:
    """Log once that a configuration leaves options to the defaults of its class."""
    if taken:
        log.info("defaults of %s: %s", name, taken)


def _require_all(options: Mapping[str, Any], names: set[str], name: str) -> None:
    unread = NOT_READ if options.get("clip_sample") else NOT_READ | {"clip_sample_range"}
    if missing := sorted(names - set(options) - unread):
        words = " ".join(f"+sampler.scheduler.{key}={ADVICE.get(key, 'VALUE')}" for key in missing)
        raise ValueError(
            f"expected a scheduler that says its {', '.join(missing)}, got the configuration of {name}, which does "
            f"not; say how the model was trained, such as {words}"
        )


def require_known(overrides: Mapping[str, Any], names: Collection[str], kind: str) -> None:
    """Refuse options that a scheduler of this kind does not have.

    Raises:
        ValueError: the message lists those that it has.
    """
    if surplus := set(overrides) - set(names):
        raise ValueError(
            f"expected options of {kind} in sampler.scheduler, got {', '.join(sorted(surplus))}; "
            f"it has {', '.join(sorted(names))}"
        )
