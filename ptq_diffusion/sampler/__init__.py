"""Floor 1: how x_T becomes x_0."""

from ptq_diffusion.sampler.ddim import DDIM
from ptq_diffusion.sampler.ddpm import DDPM
from ptq_diffusion.sampler.loop import Visit, sample
from ptq_diffusion.sampler.sampler import Sampler
from ptq_diffusion.sampler.step import Step

__all__ = ["DDIM", "DDPM", "Sampler", "Step", "Visit", "sample"]
