"""Checks of networks that come to their device block by block, before anything is computed."""

from omegaconf import DictConfig

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import BY_BLOCK
from ptq_diffusion.engine.stage import Stage, needed
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.rounding import Reads
from ptq_diffusion.stage.drawing.layers import MeasureLayers
from ptq_diffusion.stage.rounding.learn_scales import LearnScales
from ptq_diffusion.stage.rounding.offered import RoundOffers
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct
from ptq_diffusion.stage.sensitivity import MeasureSensitivity

REMEDY = "set runtime.offload=none"


def check_offload(cfg: DictConfig, model: Denoiser, goal: type[Stage], shop: Workshop) -> None:
    """Refuse blocks of a network that has none, and on an accelerator what asks layers outside their block.

    Raises:
        ValueError: the message says which option to set.
    """
    if shop.runtime.offload != BY_BLOCK:
        return
    if not model.blocks():
        raise ValueError(
            f"expected a network that names its blocks beside runtime.offload={BY_BLOCK}, got {cfg.labels.model}, "
            f"which names none; {REMEDY}"
        )
    stages = set(needed(goal))
    asked_alone = {
        "layers.images": cfg.goal in ("report", MeasureLayers.name) and cfg.layers.images > 0,
        f"goal={MeasureSensitivity.name}": goal is MeasureSensitivity,
        "bitwidth": MeasureSensitivity in stages and construct(cfg.bitwidth).reads is Evidence.SENSITIVITY,
        "rounding": {Reconstruct, RoundOffers} & stages and construct(cfg.rounding).reads is not Reads.NOTHING,
        "activation_scales": LearnScales in stages and construct(cfg.activation_scales).learns,
    }
    if shop.device.type != "cpu" and (option := next((name for name, asks in asked_alone.items() if asks), None)):
        raise ValueError(
            f"expected options that ask a network for its output alone beside runtime.offload={BY_BLOCK} on "
            f"{shop.device.type}, got {option}, which asks layers outside their blocks; {REMEDY}"
        )
