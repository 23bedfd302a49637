"""Floor 1: what is denoised."""

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.decoder import Decoder, Pixels
from ptq_diffusion.model.denoiser import Denoiser, Output, Timestep, WrappedDenoiser
from ptq_diffusion.model.diffusers_denoiser import DiffusersDenoiser
from ptq_diffusion.model.gaussian import GaussianDenoiser
from ptq_diffusion.model.guided import Guided, PairedRows
from ptq_diffusion.model.site import Kind, Role, Site

__all__ = [
    "Condition",
    "Decoder",
    "Denoiser",
    "DiffusersDenoiser",
    "GaussianDenoiser",
    "Guided",
    "Kind",
    "Output",
    "PairedRows",
    "Pixels",
    "Role",
    "Site",
    "Timestep",
    "WrappedDenoiser",
]
