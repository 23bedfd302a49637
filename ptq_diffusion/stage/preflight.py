"""Choices that do not fit each other, found before anything is computed."""

import torch
from omegaconf import DictConfig

from ptq_diffusion.stage.chunks import chunks
from ptq_diffusion.stage.factory import construct
from ptq_diffusion.stage.parts import build_model, build_quantizers, build_steps
from ptq_diffusion.stage.reference import build_extractor


def check(cfg: DictConfig) -> None:
    """Build every part of a report once and show each what it will be given.

    Raises:
        ValueError: two choices do not fit; the message says which and what to do.
    """
    model = build_model(cfg)
    steps = build_steps(cfg, model)
    build_quantizers(cfg, model)
    construct(cfg.correction).check(steps)
    chunks("images", list(cfg.seeds), cfg.images, cfg.micro_batch)
    if cfg.images * len(cfg.seeds) < 2 or cfg.metric.replicates < 2:
        raise ValueError(
            "expected at least 2 images in all and metric.replicates of at least 2, "
            f"got {cfg.images * len(cfg.seeds)} and {cfg.metric.replicates}"
        )
    extractor = build_extractor(cfg)
    extractor.features(torch.zeros(1, *model.shape, dtype=torch.uint8))
    construct(cfg.reference).check(extractor)
