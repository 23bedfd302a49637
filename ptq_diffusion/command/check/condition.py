"""Checks of conditions and guidance against the model, before anything is computed."""

import math
from collections.abc import Collection

from omegaconf import DictConfig

from ptq_diffusion.command.check.bounds import FLOAT
from ptq_diffusion.data import Labels, Prompts
from ptq_diffusion.data.prompts import FIRST
from ptq_diffusion.engine.conditions import DrawnLabels, null_condition
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.models import of_folder
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser, DiffusersDenoiser, Guided
from ptq_diffusion.model.guided import require_interval

SOURCES: dict[str, type] = {"labels": Labels, "prompts": Prompts}
"""The kinds of sources, by the option of the group `condition` that names one."""


def check_condition(cfg: DictConfig, model: Denoiser, shop: Workshop, drawn: bool) -> None:
    """Refuse a condition that the model does not read or lacks, and guidance without one or without a null condition.

    It is said once where there are fewer prompts than images, or so few that the correction is fitted on theirs.

    Args:
        cfg: the whole configuration.
        model: that is conditioned.
        shop: says it.
        drawn: whether images are drawn.

    Raises:
        ValueError: they do not fit; the message says which option to set.
        FileNotFoundError: there is no file of prompts.
    """
    source = None if cfg.condition.source is None else construct(cfg.condition.source)
    guidance = cfg.condition.guidance
    _require_kind(source, model.needs)
    if isinstance(source, Prompts) and not of_folder(cfg):
        raise ValueError(
            f"expected labels or no condition of a network of your own, got {cfg.labels.condition}, whose encoders are "
            "those of a pipeline's folder; set condition=labels or none, or save a pipeline and set model=diffusers"
        )
    _require_guidance(cfg, source, model)
    if isinstance(source, Labels):
        labels = DrawnLabels.of_network(source, model.classes, guidance.embedded)
        for scale in (guidance.scale, cfg.noise.guidance):
            if scale not in (None, 1):
                low, high = guidance.interval
                Guided(model, null_condition(model, labels), scale, (low, high))
    if isinstance(source, Prompts) and drawn:
        _say_if_few(len(source.texts()), cfg.images, shop)


def _require_guidance(cfg: DictConfig, source: object, model: Denoiser) -> None:
    """Refuse guidance of no condition, by an odd interval or scale, and a negative prompt that no guidance reads."""
    guidance, negative = cfg.condition.guidance, cfg.condition.get("negative_prompt")
    require_interval(*guidance.interval)
    if ("scale" in model.needs) != (guidance.embedded is not None):
        wanted, value = ("a guidance scale for the network to embed", "SCALE, such as 3.5")
        if guidance.embedded is not None:
            wanted, value = "no scale for a network that embeds none", "null"
        raise ValueError(f"expected {wanted}, got {guidance.embedded}; set condition.guidance.embedded={value}")
    scales = {"condition.guidance.scale": guidance.scale, "noise.guidance": cfg.noise.guidance}
    for (option, scale), none in zip(scales.items(), ("1", "null"), strict=True):
        if source is None and scale not in (None, 1):
            raise ValueError(
                f"expected guidance of a condition only, got {option}={scale} without; set {option}={none}"
            )
        # Between 0 and 1 guidance is a blend of both rows, but 0 is meant otherwise by those who come from diffusers.
        if scale == 0:
            raise ValueError(
                f"expected a condition that is read, got {option}={scale}, at which only the null condition is; "
                f"guidance_scale=0 of diffusers, no guidance, is {option}=1 here"
            )
    if negative and all(scale in (None, 1) for scale in scales.values()):
        raise ValueError(
            f"expected guidance away from condition.negative_prompt, got condition.guidance.scale={guidance.scale}, at "
            "which nothing reads it; leave it out, or set a scale above 1"
        )


def encoded_size(cfg: DictConfig, model: Denoiser) -> int:
    """The bytes of all encoded prompts of a configuration, each text once; 0 of another condition."""
    source = None if cfg.condition.source is None else construct(cfg.condition.source)
    if not isinstance(source, Prompts) or not isinstance(model, DiffusersDenoiser):
        return 0
    numbers = sum(math.prod(row) for row in model.family.needs(model.config).values())
    return FLOAT * numbers * len(set(source.texts()))


def _say_if_few(count: int, images: int, shop: Workshop) -> None:
    if count < images:
        shop.runtime.say(f"condition: {count} prompts for {images} images of a seed, they repeat in order")
    elif FIRST["noise"] * count < images:
        shop.runtime.say(
            f"condition: {count} prompts for {images} images of a seed, some of which the correction is fitted on too; "
            f"images have prompts of their own from {2 * images} on"
        )


def _require_kind(source: object, needs: Collection[str]) -> None:
    """Refuse a source of another kind than the network reads."""
    wanted = "none" if not needs else "labels" if "labels" in needs else "prompts"
    chosen = next((name for name, kind in SOURCES.items() if isinstance(source, kind)), "none")
    if chosen != wanted:
        reads = {
            "none": "an unconditional network",
            "labels": "a network of class labels",
            "prompts": "a network of prompts",
        }
        file = " condition.source.path=FILE, a text file of one prompt a line" if wanted == "prompts" else ""
        raise ValueError(
            f"expected condition={wanted} of {reads[wanted]}, got condition={chosen}; set condition={wanted}{file}"
        )
