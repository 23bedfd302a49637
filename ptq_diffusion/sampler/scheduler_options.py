"""The options that a sampler takes from a model's scheduler, each there and of its type."""

import inspect
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from ptq_diffusion.sampler.process import FLOW

SAME_DEFAULTS = ("DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler")
"""Classes whose configurations may leave out values that equal a default: DDIM and DDPM have the same ones."""
ABSENT = {"trained_betas": None, "thresholding": False, "rescale_betas_zero_snr": False}
"""The behaviour of every scheduler that has no such option."""
TRAINING = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""Options of the training, which no default of another class of schedulers can say."""
FLOW_CLASSES = "FlowMatch"
"""The beginning of the names of schedulers of flow matching."""
NOT_READ = {"dynamic_thresholding_ratio", "sample_max_value"}
"""Options of thresholding, which is refused."""
ADVICE = {"clip_sample": "false", "set_alpha_to_one": "true", "variance_type": "fixed_small"}
MOST_TIMES = 1_000_000


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
    said = "shift_terminal" in config and "beta_schedule" not in config
    return named or said or config.get("prediction_type") == FLOW


def _defaults(kind: type[SchedulerMixin], own: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """The values of options that a configuration of the class `name` leaves out."""
    if kind.__name__ in SAME_DEFAULTS:
        return own if name in SAME_DEFAULTS else ABSENT if name else ABSENT | {"set_alpha_to_one": True}
    said = {key: option.default for key, option in inspect.signature(DDPMScheduler.__init__).parameters.items()}
    training = {key: said[key] for key in TRAINING} if name in SAME_DEFAULTS else {}
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


def require_values(options: Mapping[str, Any]) -> None:
    """Refuse values of another type than an option has, or out of its range.

    Raises:
        ValueError: the message names the option.
    """
    for key, value in options.items():
        if key in EXPECTED and not EXPECTED[key][0](value):
            raise _unexpected(key, EXPECTED[key][1], value)
    count, betas, offset = (options.get(key) for key in ("num_train_timesteps", "trained_betas", "steps_offset"))
    if betas is not None and len(betas) != count:
        raise ValueError(
            f"expected as many trained_betas as num_train_timesteps, got {len(betas)} and {count}; "
            "save the scheduler with both that belong together"
        )
    if offset is not None and count is not None and offset >= count:
        raise _unexpected("steps_offset", f"below num_train_timesteps, {count}", offset)
    if options.get("clip_sample") and not (_is_number(radius := options["clip_sample_range"]) and radius > 0):
        raise _unexpected("clip_sample_range", "a number above 0 where clip_sample is true", radius)


def _unexpected(key: str, expected: str, value: object) -> ValueError:
    return ValueError(
        f"expected {key} of the scheduler to be {expected}, got {reprlib.repr(value)}; "
        f"change it with +sampler.scheduler.{key}=VALUE"
    )


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # Compared rather than asked with isfinite, which a huge int overflows; NaN is not below either.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _is_name(value: object) -> bool:
    return isinstance(value, str)


def _is_betas(value: object) -> bool:
    numbers = value.tolist() if isinstance(value, np.ndarray) else value
    return numbers is None or (isinstance(numbers, list | tuple) and all(map(_is_number, numbers)))


BOOL = (_is_bool, "true or false")
BETA = (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1")
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")
EXPECTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "num_train_timesteps": (
        lambda value: _is_whole(value) and 1 <= value <= MOST_TIMES,
        f"a whole number from 1 to {MOST_TIMES}",
    ),
    "beta_start": BETA,
    "beta_end": BETA,
    "beta_schedule": (_is_name, "a name, such as linear"),
    "trained_betas": (_is_betas, "a list of numbers or null"),
    "clip_sample": BOOL,
    "set_alpha_to_one": BOOL,
    "thresholding": BOOL,
    "rescale_betas_zero_snr": BOOL,
    "steps_offset": (lambda value: _is_whole(value) and value >= 0, "a whole number, 0 or more"),
    "prediction_type": (_is_name, "epsilon, v_prediction or sample"),
    "timestep_spacing": (_is_name, "leading, trailing or linspace"),
    **dict.fromkeys(("shift", "flow_shift"), (lambda value: _is_number(value) and value > 0, "a number above 0")),
    **dict.fromkeys(("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"), BOOL),
    **dict.fromkeys(SIGMAS, (lambda value: value is None or _is_bool(value), "true or false")),
}
