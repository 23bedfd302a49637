"""Checks of networks that come to their device block by block, before anything is computed."""

from omegaconf import DictConfig

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import BY_BLOCK
from ptq_diffusion.engine.stage import Stage, needed
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.report.stages import goal_stages
from ptq_diffusion.rounding import Reads
from ptq_diffusion.stage.drawing.layers import MeasureLayers
from ptq_diffusion.stage.planning.changes import MeasureChanges
from ptq_diffusion.stage.rounding.learn_scales import LearnScales
from ptq_diffusion.stage.rounding.offered import RoundOffers
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct
from ptq_diffusion.stage.sensitivity import MeasureSensitivity

REMEDY = "set runtime.offload=none"


def check_offload(cfg: DictConfig, model: Denoiser, goal: type[Stage], shop: Workshop) -> None:
    """Refuse to take a network block by block where that cannot be.

    Raises:
        ValueError: see `require_blocks` and `require_whole_calls`.
    """
    if shop.runtime.offload == BY_BLOCK:
        require_blocks(cfg, model)
        if shop.device.type != "cpu":
            require_whole_calls(cfg, goal, shop.device.type)


def require_blocks(cfg: DictConfig, model: Denoiser) -> None:
    """Refuse a network without blocks.

    Raises:
        ValueError: it names none.
    """
    if not model.blocks():
        raise ValueError(
            f"expected a network that names its blocks beside runtime.offload={BY_BLOCK}, got {cfg.labels.model}, "
            f"which names none; {REMEDY}"
        )


def require_whole_calls(cfg: DictConfig, goal: type[Stage], device: str) -> None:
    """Refuse what asks layers outside of a call of their block, which alone brings their weights to a device.

    Args:
        cfg: the whole configuration.
        goal: the last stage.
        device: the type of an accelerator.

    Raises:
        ValueError: the message says which option asks them.
    """
    stages = {stage for last in goal_stages(cfg, goal) for stage in needed(last)}
    asked_alone = {
        "layers.images": MeasureLayers in stages,
        f"goal={goal.name}": goal in (MeasureChanges, MeasureSensitivity),
        "bitwidth": MeasureChanges in stages and construct(cfg.bitwidth).reads is Evidence.SENSITIVITY,
        "rounding": {Reconstruct, RoundOffers} & stages and construct(cfg.rounding).reads is not Reads.NOTHING,
        "activation_scales": LearnScales in stages and construct(cfg.activation_scales).learns,
    }
    if option := next((name for name, asks in asked_alone.items() if asks), None):
        raise ValueError(
            f"expected options that ask a network for its output alone beside runtime.offload={BY_BLOCK} on "
            f"{device}, got {option}, which asks layers outside their blocks; {REMEDY}"
        )
