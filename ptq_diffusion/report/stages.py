"""The stages that a goal is made of: one, and of a report with a table of layers two."""

from omegaconf import DictConfig

from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.stage.drawing.layers import MeasureLayers


def compares_layers(cfg: DictConfig) -> bool:
    """Whether a report of this configuration has a table and a figure of the errors of layers."""
    return bool(cfg.layers.images)


def goal_stages(cfg: DictConfig, goal: type[Stage]) -> tuple[type[Stage], ...]:
    """The stages whose artefacts `cfg.goal` reads itself, in the order in which they are made.

    Args:
        cfg: the whole configuration.
        goal: the last stage of the goal, which is `Evaluate` of a report.
    """
    return (goal, MeasureLayers) if cfg.goal == "report" and compares_layers(cfg) else (goal,)
