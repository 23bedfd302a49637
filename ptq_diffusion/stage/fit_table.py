"""The table that a correction is fitted on, which need not be the sampler's: `noise.steps`."""

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.correction.transfer import interpolated, require_reach
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.sampler import Table


def fit_table(cfg: DictConfig, model: Denoiser, shop: Workshop) -> Table:
    """The sampler's table, or with `noise.steps` that of the same sampler with so many steps."""
    if cfg.noise.steps is None:
        return shop.table(cfg, model)
    other = cfg.copy()
    OmegaConf.update(other, "sampler.steps", cfg.noise.steps)
    return shop.table(other, model)


def check_reach(cfg: DictConfig, model: Denoiser, shop: Workshop) -> None:
    """Refuse another number of steps to fit on than the sampler's if what is fitted there cannot serve the sampler.

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
