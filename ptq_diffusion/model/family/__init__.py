"""Families of networks: one file for each diffusers class."""

from ptq_diffusion.model.family.dit import DiT
from ptq_diffusion.model.family.families import FAMILIES
from ptq_diffusion.model.family.family import Family
from ptq_diffusion.model.family.flux import Flux
from ptq_diffusion.model.family.pixart import PixArt
from ptq_diffusion.model.family.sana import Sana
from ptq_diffusion.model.family.sd3 import SD3
from ptq_diffusion.model.family.unet_2d import UNet2D
from ptq_diffusion.model.family.unet_2d_condition import UNet2DCondition

__all__ = ["FAMILIES", "SD3", "DiT", "Family", "Flux", "PixArt", "Sana", "UNet2D", "UNet2DCondition"]
