"""The values that the options of a scheduler may have, each of its type and within its range."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

MOST_TIMES = 1_000_000
MOST = 10**12
"""The most of anything else that is counted."""
OTHER_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Ways to noise levels of which a scheduler takes one in place of those of flow matching."""
NOT_READ = {"dynamic_thresholding_ratio", "sample_max_value"}
"""Options of thresholding, which is refused."""


class Expected(NamedTuple):
    """The values that an option may have.

    Args:
        fits: whether a value is one of them.
        words: what they are, behind "expected KEY of the scheduler to be".
    """

    fits: Callable[[Any], bool]
    words: str

    def or_null(self) -> "Expected":
        """The same values, or null."""
        return Expected(lambda value: value is None or self.fits(value), f"{self.words}, or null")


def require_values(options: Mapping[str, Any]) -> None:
    """Refuse values of another type than an option has, out of its range, or that do not fit each other.

    Raises:
        ValueError: the message names the option.
    """
    for key, value in options.items():
        if key in EXPECTED and not EXPECTED[key].fits(value):
            raise _unexpected(key, EXPECTED[key].words, value)
    count, betas, offset = (options.get(key) for key in ("num_train_timesteps", "trained_betas", "steps_offset"))
    if betas is not None and len(betas) != count:
        raise ValueError(
            f"expected as many trained_betas as num_train_timesteps, got {len(betas)} and {count}; "
            "save the scheduler with both that belong together"
        )
    if count is not None:
        _require_within_training(options, count, offset)
    if options.get("clip_sample") and not (_is_number(radius := options["clip_sample_range"]) and radius > 0):
        raise _unexpected("clip_sample_range", "a number above 0 where clip_sample is true", radius)
    if options.get("use_flow_sigmas") and (others := [key for key in OTHER_SIGMAS if options.get(key)]):
        raise _unexpected(others[0], "false of a model of flow matching", options[others[0]])
    if options.get("use_dynamic_shifting") and "base_shift" in options:
        _require_dynamic(options)


def _require_within_training(options: Mapping[str, Any], count: int, offset: int | None) -> None:
    if offset is not None and offset >= count:
        raise _unexpected("steps_offset", f"below num_train_timesteps, {count}", offset)
    if (steps := options.get("original_inference_steps")) is not None and steps > count:
        raise _unexpected("original_inference_steps", f"at most num_train_timesteps, {count}", steps)


def _require_dynamic(options: Mapping[str, Any]) -> None:
    """Refuse a dynamic shift, linear in a state's tokens, that is not given by two different points."""
    for key in ("base_shift", "max_shift"):
        if options[key] is None:
            raise _unexpected(key, "a number where use_dynamic_shifting is true", None)
    base, most = options["base_image_seq_len"], options["max_image_seq_len"]
    if most <= base:
        raise _unexpected("max_image_seq_len", f"above base_image_seq_len, {base}", most)


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


def _is_positive(value: Any) -> bool:  # noqa: ANN401
    return _is_number(value) and value > 0


def _is_betas(value: object) -> bool:
    numbers = value.tolist() if isinstance(value, np.ndarray) else value
    return numbers is None or (isinstance(numbers, list | tuple) and all(map(_is_number, numbers)))


def _is_bound(value: Any) -> bool:  # noqa: ANN401
    return _is_number(value) or (isinstance(value, float) and value == -float("inf"))


def _one_of(*names: str) -> Expected:
    return Expected(lambda value: isinstance(value, str) and value in names, " or ".join(names))


BOOL = Expected(_is_bool, "true or false")
NUMBER = Expected(_is_number, "a number")
POSITIVE = Expected(_is_positive, "a number above 0")
COUNT = Expected(lambda value: _is_whole(value) and 1 <= value <= MOST, f"a whole number from 1 to {MOST}")
BETA = Expected(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1")
SHARE = Expected(lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")


def _name(words: str) -> Expected:
    """A name that the scheduler or the sampler itself knows or refuses."""
    return Expected(lambda value: isinstance(value, str), words)


EXPECTED: Mapping[str, Expected] = {
    "num_train_timesteps": Expected(
        lambda value: _is_whole(value) and 1 <= value <= MOST_TIMES, f"a whole number from 1 to {MOST_TIMES}"
    ),
    "beta_start": BETA,
    "beta_end": BETA,
    "beta_schedule": _name("a name, such as linear"),
    "trained_betas": Expected(_is_betas, "a list of numbers or null"),
    "rescale_betas_zero_snr": BOOL,
    "prediction_type": _name("epsilon, v_prediction, sample or flow_prediction"),
    "variance_type": _name("a name, such as fixed_small").or_null(),
    "clip_sample": BOOL,
    "thresholding": BOOL,
    "set_alpha_to_one": BOOL,
    "steps_offset": Expected(lambda value: _is_whole(value) and value >= 0, "a whole number, 0 or more"),
    "timestep_spacing": _one_of("leading", "trailing", "linspace"),
    "timestep_type": _one_of("discrete", "continuous"),
    "interpolation_type": _one_of("linear", "log_linear"),
    "final_sigmas_type": _one_of("zero", "sigma_min"),
    "sigma_min": POSITIVE.or_null(),
    "sigma_max": POSITIVE.or_null(),
    # Null is false in the configurations of some schedulers.
    **dict.fromkeys((*OTHER_SIGMAS, "use_flow_sigmas"), BOOL.or_null()),
    "original_inference_steps": COUNT,
    "timestep_scaling": POSITIVE,
    "solver_order": COUNT,
    "solver_type": _name("midpoint or heun"),
    "algorithm_type": _name("a name, such as dpmsolver++"),
    "lower_order_final": BOOL,
    "euler_at_final": BOOL,
    "lambda_min_clipped": Expected(_is_bound, "a number or -inf"),
    "shift": POSITIVE,
    "flow_shift": POSITIVE,
    "shift_terminal": SHARE.or_null(),
    "use_dynamic_shifting": BOOL,
    "base_shift": NUMBER.or_null(),
    "max_shift": NUMBER.or_null(),
    "base_image_seq_len": COUNT,
    "max_image_seq_len": COUNT,
    "time_shift_type": _one_of("exponential", "linear"),
    "invert_sigmas": BOOL,
    "stochastic_sampling": BOOL,
}
"""The values of every option that a sampler's scheduler reads, but for a clip_sample_range, read by some alone."""
