"""Choices that do not fit each other, found before anything is computed."""

import torch
from omegaconf import DictConfig

from ptq_diffusion.command.preamble import needed
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.export import Export
from ptq_diffusion.stage.fit_table import check_reach, fit_table
from ptq_diffusion.stage.reference import build_extractor


def check(cfg: DictConfig, goal: type[Stage], shop: Workshop) -> None:
    """Build every part that a goal depends on once and show each what it will be given.

    Raises:
        ValueError: two choices do not fit; the message says which and what to do.
    """
    used = {key for stage in needed(goal) for key in stage.uses}
    if "sampler" in used:
        shop.table(cfg)
        if "quantizer" in used:
            shop.quantizers(cfg)
        if "correction" in used:
            _check_correction(cfg, shop)
        if goal is Export:
            _check_export(cfg)
        if "images" in used:
            chunks("images", list(cfg.seeds), cfg.images, cfg.micro_batch)
        if "metric" in used:
            _check_judging(cfg, shop)


def _check_correction(cfg: DictConfig, shop: Workshop) -> None:
    correction, steps = construct(cfg.correction), fit_table(cfg, shop)
    check_reach(cfg, shop)
    correction.check(steps)
    correction.check_images(cfg.noise.images, shop.model(cfg).shape[0])
    if cfg.noise.steps is not None:
        correction.check_carried(steps)


def _check_export(cfg: DictConfig) -> None:
    if construct(cfg.correction).asks_again:
        raise ValueError(
            "expected a correction that asks the network once a step, for a pipeline does not ask again, got "
            f"{cfg.labels.correction}; draw its images with goal=samples_corrected"
        )


def _check_judging(cfg: DictConfig, shop: Workshop) -> None:
    """Show the metrics how many images of which shape they will be given."""
    if cfg.images < 2 or cfg.metric.replicates < 2:
        raise ValueError(
            "expected at least 2 images of each seed and metric.replicates of at least 2, "
            f"got {cfg.images} and {cfg.metric.replicates}"
        )
    count = cfg.images * len(cfg.seeds)
    if not 1 <= cfg.metric.neighbours <= count - 2:
        raise ValueError(
            f"expected metric.neighbours in 1..{count - 2} for {count} images in all, got {cfg.metric.neighbours}; "
            "draw more images or lower it"
        )
    extractor = build_extractor(cfg)
    extractor.features(torch.zeros(1, *shop.model(cfg).shape, dtype=torch.uint8))
    construct(cfg.reference).check(extractor, cfg.metric.neighbours)
