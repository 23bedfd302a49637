"""The table and the guidance scale of a fit, which `noise.steps` and `noise.guidance` can set apart from sampling's."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.correction.transfer import interpolated, require_reach
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.sampler import Table


def fit_table(cfg: DictConfig, model: Denoiser, shop: Workshop) -> Table:
    """The sampler's table, or with `noise.steps` that of the same sampler with so many steps."""
    return shop.table(as_fitted(cfg), model)


def as_fitted(cfg: DictConfig) -> DictConfig:
    """The configuration whose sampler has the steps and the guidance scale that a correction is fitted with.

    Options of `noise` for these are null then. A scale that the network is told, `condition.guidance.embedded`, stays.
    """
    other = cfg.copy()
    if cfg.noise.steps is not None:
        other.sampler.steps, other.noise.steps = cfg.noise.steps, None
    if cfg.noise.guidance is not None:
        other.condition.guidance.scale, other.noise.guidance = cfg.noise.guidance, None
    return other


def with_own_guidance(cfg: DictConfig) -> DictConfig:
    """The configuration with `noise.guidance=null` where it equals the scale of the images, which null means."""
    if cfg.noise.guidance is None or cfg.noise.guidance != cfg.condition.guidance.scale:
        return cfg
    other = cfg.copy()
    other.noise.guidance = None
    return other


def fit_model(cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> Denoiser:
    """The float model with the guidance that a correction is fitted with."""
    return shop.guided(as_fitted(cfg), inputs)


def fit_network(
    quantized: QuantizedDenoiser, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop
) -> QuantizedDenoiser:
    """The quantized network with the guidance that a correction is fitted with.

    Its integers and settings are those of the network that the correction serves.
    """
    return quantized if cfg.noise.guidance is None else quantized.guided_as(fit_model(cfg, inputs, shop))


def check_reach(cfg: DictConfig, model: Denoiser, shop: Workshop) -> None:
    """Refuse `noise.steps` whose table is none that a fit can be interpolated from onto the sampler's table.

    Raises:
        ValueError: its times do not reach as far.
    """
    if cfg.noise.steps is not None:
        require_reach(fit_table(cfg, model, shop), shop.table(cfg, model))


def carried(fitted: FittedCorrection, cfg: DictConfig, shop: Workshop) -> FittedCorrection:
    """The fitted correction at the sampler's steps.

    Raises:
        ValueError: the correction cannot be carried from its table to the sampler's.
    """
    if cfg.noise.steps is None:
        return fitted
    model = shop.model(cfg)
    return interpolated(fitted, fit_table(cfg, model, shop), shop.table(cfg, model))
