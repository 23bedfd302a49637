"""The options that a sampler takes from a model's scheduler, each there and of its type."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from ptq_diffusion.sampler.process import FLOW
from ptq_diffusion.sampler.scheduler_values import NOT_READ, require_values

SAME_DEFAULTS = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler")
"""Classes whose configurations may leave out values that equal a default: DDIM and DDPM have the same ones."""
ABSENT = {"trained_betas": None, "thresholding": False, "rescale_betas_zero_snr": False}
"""The behaviour of every scheduler that has no such option."""
TRAINING = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""Options of the training, which no default of another class of schedulers can say."""
FLOW_CLASSES = "FlowMatch"
"""The beginning of the names of schedulers of flow matching."""
ADVICE = {"clip_sample": "false", "set_alpha_to_one": "true", "variance_type": "fixed_small"}


def scheduler_options(
    kind: type[SchedulerMixin], config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a scheduler of this kind, from another's configuration and the options that replace its own.

    A configuration of DDIM or DDPM may leave out an option that equals its default; one of another class may not, for
    its defaults are others. A live `config` does not tell its class: one without `set_alpha_to_one` is complete, of a
    class that ends at x_0 itself. Schedulers of other kinds than these two have options of their own, such as Karras's
    sigmas, of which the model's configuration may say nothing: there, as in diffusers, they have their defaults.

    Raises:
        ValueError: the scheduler has no such option, the configuration is of one without betas, whose process is
            another, or lacks options, or a value is of another type or out of range.
    """
    name = config.get("_class_name")
    flow = is_of_flow(config) and kind is not DPMSolverMultistepScheduler
    if flow or ("beta_schedule" not in config and name not in SAME_DEFAULTS):
        remedy = "set sampler=flow_euler" if flow else "use a model that was trained with one"
        raise ValueError(
            f"expected the configuration of a scheduler with a beta_schedule, such as DDPMScheduler, got that of "
            f"{name}{', of flow matching' * flow}; {remedy}"
        )
    own_defaults = {key: option.default for key, option in inspect.signature(kind.__init__).parameters.items()}
    del own_defaults["self"]
    require_known(overrides, own_defaults.keys(), kind.__name__)
    defaults = _defaults(kind, own_defaults, name)
    values = dict(defaults) | dict(config) | dict(overrides)
    options = {key: value for key, value in values.items() if key in own_defaults}
    _require_all(options, set(own_defaults), str(name))
    require_values(options)
    return options


def is_of_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is that of a model of flow matching."""
    named = str(config.get("_class_name", "")).startswith(FLOW_CLASSES)
    # A live configuration does not tell its class.
    alike = "shift_terminal" in config and "beta_schedule" not in config
    return named or alike or config.get("prediction_type") == FLOW


def _defaults(kind: type[SchedulerMixin], own: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """The values of options that a configuration of the class `name` leaves out."""
    if kind.__name__ in SAME_DEFAULTS:
        return own if name in SAME_DEFAULTS else ABSENT if name else ABSENT | {"set_alpha_to_one": True}
    parameters = inspect.signature(DDPMScheduler.__init__).parameters
    training = {key: parameters[key].default for key in TRAINING} if name in SAME_DEFAULTS else {}
    return {key: value for key, value in own.items() if key not in TRAINING} | training


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
