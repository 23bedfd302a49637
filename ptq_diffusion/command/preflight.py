"""Checks that choices fit each other, before anything is computed."""

import torch
from omegaconf import DictConfig

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage, needed
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network.observing import MOST_BITS
from ptq_diffusion.stage.evaluate import build_metrics
from ptq_diffusion.stage.export import Export
from ptq_diffusion.stage.fit_table import check_reach, fit_table
from ptq_diffusion.stage.reference import build_extractor
from ptq_diffusion.stage.sensitivity import MeasureSensitivity, sensitivity_chunks
from ptq_diffusion.stage.step_signal import MeasureStepSignal


def check(cfg: DictConfig, goal: type[Stage], shop: Workshop) -> None:
    """Build every part that a goal depends on once and show each the shape of its input.

    Raises:
        ValueError: two choices do not fit; the message says which and what to do.
    """
    used = {key for stage in needed(goal) for key in stage.uses}
    if "sampler" in used:
        model = shop.model(cfg)
        shop.table(cfg, model)
        if "bitwidth" in used:
            _check_bits(cfg, model, shop)
            _check_measurements(cfg, goal)
        if "correction" in used:
            _check_correction(cfg, model, shop)
        if goal is Export:
            _check_export(cfg)
        if "images" in used:
            chunks("images", list(cfg.seeds), cfg.images, cfg.micro_batch)
        if "judging" in used:
            _check_judging(cfg, model)


def _check_bits(cfg: DictConfig, model: Denoiser, shop: Workshop) -> None:
    policy, table = construct(cfg.bitwidth), shop.table(cfg, model)
    if not isinstance(policy, BitwidthPolicy):
        raise ValueError(f"expected a bitwidth policy, got {type(policy).__name__}; choose one with bitwidth=NAME")
    policy.check(model.architecture(), table)
    shop.observations(cfg, model)
    construct(cfg.quantizer.weight)(MOST_BITS)


def _check_measurements(cfg: DictConfig, goal: type[Stage]) -> None:
    """Refuse a measurement that cannot be taken: at other steps than the sampler's, or on too many images."""
    policy = construct(cfg.bitwidth)
    if cfg.noise.steps is not None and (policy.by_step or goal in (MeasureStepSignal, MeasureSensitivity)):
        what = goal.name if goal in (MeasureStepSignal, MeasureSensitivity) else cfg.labels.bitwidth
        raise ValueError(
            f"expected noise.steps=null with bits that belong to the sampler's own steps, got noise.steps="
            f"{cfg.noise.steps} with {what}; set noise.steps=null"
        )
    if goal is MeasureSensitivity and not isinstance(policy, UnderBudget):
        raise ValueError(
            f"expected a policy whose offers sensitivities are measured of, got {cfg.labels.bitwidth}; choose one that "
            "spends a budget, such as bitwidth=budget"
        )
    if goal is MeasureSensitivity or policy.reads is Evidence.SENSITIVITY:
        sensitivity_chunks(cfg)


def _check_correction(cfg: DictConfig, model: Denoiser, shop: Workshop) -> None:
    correction, steps = construct(cfg.correction), fit_table(cfg, model, shop)
    check_reach(cfg, model, shop)
    correction.check(steps)
    correction.check_images(cfg.noise.images, model.shape[0])
    if cfg.noise.steps is not None:
        correction.check_carried(steps)


def _check_export(cfg: DictConfig) -> None:
    if construct(cfg.correction).asks_again:
        raise ValueError(
            "expected a correction that asks the network once a step, for a pipeline does not ask again, got "
            f"{cfg.labels.correction}; draw its images with goal=samples_corrected"
        )


def _check_judging(cfg: DictConfig, model: Denoiser) -> None:
    """Build the metrics, and show the feature extractor and the reference the number and shape of the images."""
    if cfg.images < 2 or cfg.judging.replicates < 2:
        raise ValueError(
            "expected at least 2 images of each seed and judging.replicates of at least 2, "
            f"got {cfg.images} and {cfg.judging.replicates}"
        )
    count = cfg.images * len(cfg.seeds)
    if not 1 <= cfg.judging.neighbours <= count - 2:
        raise ValueError(
            f"expected judging.neighbours in 1..{count - 2} for {count} images in all, got {cfg.judging.neighbours}; "
            "draw more images or lower it"
        )
    build_metrics(cfg)
    extractor = build_extractor(cfg)
    extractor.features(torch.zeros(1, *model.shape, dtype=torch.uint8))
    construct(cfg.reference).check(extractor, cfg.judging.neighbours)
