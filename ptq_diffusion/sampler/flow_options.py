"""The options of schedulers of flow matching, whichever of them a model was saved with."""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from ptq_diffusion.sampler.process import FLOW
from ptq_diffusion.sampler.scheduler_options import is_of_flow, require_known
from ptq_diffusion.sampler.scheduler_values import require_values

DYNAMIC = ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling")
"""Options that DPM-Solver++ has not."""


def with_flow_sigmas(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A scheduler's configuration, where it is of flow matching in the words of `DPMSolverMultistepScheduler`.

    Raises:
        ValueError: its noise levels depend on more than a shift.
    """
    if not is_of_flow(config) or config.get("use_flow_sigmas"):
        return config
    if reading := [name for name in DYNAMIC if config.get(name)]:
        raise ValueError(
            f"expected the scheduler of a model of flow matching with one shift, got one with {', '.join(reading)}; "
            "set sampler=flow_euler"
        )
    shift = config.get("flow_shift", config.get("shift", 1.0))
    flow = {"prediction_type": FLOW, "use_flow_sigmas": True, "flow_shift": shift}
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}  # Read by none of its flow sigmas.
    return betas | {"num_train_timesteps": config.get("num_train_timesteps", 1000)} | flow


def flow_options(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a `FlowMatchEulerDiscreteScheduler`, from a model's scheduler and options that replace its own.

    Options that the configuration leaves out have diffusers' defaults; the `flow_shift` of a solver is its shift.

    Raises:
        ValueError: the configuration is not of flow matching, or an option does not exist or is of another type.
    """
    if not is_of_flow(config):
        raise ValueError(
            "expected the scheduler of a model of flow matching, such as FlowMatchEulerDiscreteScheduler, got that of "
            f"{config.get('_class_name')}; set sampler=ddim or another"
        )
    parameters = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    require_known(overrides, defaults.keys(), "FlowMatchEulerDiscreteScheduler")
    shift = {"shift": config["flow_shift"]} if "flow_shift" in config else {}
    options = {name: value for name, value in (shift | dict(config) | dict(overrides)).items() if name in defaults}
    require_values(defaults | options)
    return options
