"""Floor 1: what is denoised."""

from ptq_diffusion.model.denoiser import Denoiser
from ptq_diffusion.model.gaussian import GaussianDenoiser
from ptq_diffusion.model.site import Kind, Role, Site
from ptq_diffusion.model.unet import UNetDenoiser

__all__ = ["Denoiser", "GaussianDenoiser", "Kind", "Role", "Site", "UNetDenoiser"]
