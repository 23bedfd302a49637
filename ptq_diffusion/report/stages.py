"""The stages that a goal is made of: one, and of a report further ones that its tables and figures show."""

from omegaconf import DictConfig

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.engine.factory import construct, require_kind
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.stage.drawing.layers import MeasureLayers
from ptq_diffusion.stage.fit_setting import with_own_guidance
from ptq_diffusion.stage.step_signal import MeasureStepSignal


def compares_layers(cfg: DictConfig) -> bool:
    """Whether a report of this configuration has a table and a figure of the errors of layers."""
    return bool(cfg.layers.images)


def shows_step_signal(cfg: DictConfig) -> bool:
    """Whether the figure of the plan shows the signal to noise of every offer of bits at each step.

    It does of a policy that reads it, and unless it is switched off of one that offers several bits. A measurement for
    other steps or another guidance than those of the images would not belong to the plan.

    Raises:
        ValueError: `bitwidth` names no policy.
    """
    require_kind(cfg.bitwidth, BitwidthPolicy, "bitwidth")
    policy = construct(cfg.bitwidth)
    if policy.reads is Evidence.STEP_SNR:
        return True
    belongs = cfg.noise.steps is None and with_own_guidance(cfg).noise.guidance is None
    return bool(len(policy.offered) > 1 and cfg.step_signal.shown and belongs)


def goal_stages(cfg: DictConfig, goal: type[Stage]) -> tuple[type[Stage], ...]:
    """The stages whose artefacts `cfg.goal` reads itself, in the order in which they are made.

    Args:
        cfg: the whole configuration.
        goal: the last stage of the goal, which is `Evaluate` of a report.
    """
    if cfg.goal != "report":
        return (goal,)
    layers: tuple[type[Stage], ...] = (MeasureLayers,) if compares_layers(cfg) else ()
    return (goal, *layers, *((MeasureStepSignal,) if shows_step_signal(cfg) else ()))
