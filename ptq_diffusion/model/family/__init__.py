"""Families of networks: one file for each diffusers class."""

from ptq_diffusion.model.family.families import FAMILIES
from ptq_diffusion.model.family.family import Family
from ptq_diffusion.model.family.unet_2d import UNet2D

__all__ = ["FAMILIES", "Family", "UNet2D"]
