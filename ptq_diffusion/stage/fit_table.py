"""The table that a correction is fitted on, which need not be the sampler's: `noise.steps`."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.correction.transfer import interpolated, require_reach
from ptq_diffusion.engine.workshop import build_model, build_steps
from ptq_diffusion.model import Denoiser
from ptq_diffusion.sampler import Step


def build_fit_steps(cfg: DictConfig, model: Denoiser) -> Sequence[Step]:
    """The sampler's table, or with `noise.steps` that of the same sampler with so many steps.

    Raises:
        ValueError: what is fitted on that table cannot serve the sampler's.
    """
    steps = build_steps(cfg, model)
    if cfg.noise.steps is None:
        return steps
    other = cfg.copy()
    OmegaConf.update(other, "sampler.steps", cfg.noise.steps)
    fitted_on = build_steps(other, model)
    require_reach(fitted_on, steps)
    return fitted_on


def carried(fitted: FittedCorrection, cfg: DictConfig) -> FittedCorrection:
    """The fitted correction at the sampler's steps.

    Raises:
        ValueError: the correction cannot be carried from its table to the sampler's.
    """
    if cfg.noise.steps is None:
        return fitted
    model = build_model(cfg)
    return interpolated(fitted, build_fit_steps(cfg, model), build_steps(cfg, model))
