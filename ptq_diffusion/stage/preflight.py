"""Choices that do not fit each other, found before anything is computed."""

import torch
from omegaconf import DictConfig

from ptq_diffusion.stage.chunks import chunks
from ptq_diffusion.stage.factory import construct
from ptq_diffusion.stage.fit_table import build_fit_steps
from ptq_diffusion.stage.parts import build_model, build_quantizers
from ptq_diffusion.stage.reference import build_extractor


def check(cfg: DictConfig) -> None:
    """Build every part of a report once and show each what it will be given.

    Raises:
        ValueError: two choices do not fit; the message says which and what to do.
    """
    model = build_model(cfg)
    steps = build_fit_steps(cfg, model)
    build_quantizers(cfg, model)
    construct(cfg.correction).check(steps)
    chunks("images", list(cfg.seeds), cfg.images, cfg.micro_batch)
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
    extractor.features(torch.zeros(1, *model.shape, dtype=torch.uint8))
    construct(cfg.reference).check(extractor, cfg.metric.neighbours)
