"""All families of networks."""

from ptq_diffusion.model.family.family import Family
from ptq_diffusion.model.family.unet_2d import UNet2D

FAMILIES: dict[str, Family] = {family.network_class.__name__: family for family in (UNet2D(),)}
"""Every family by the name of its diffusers class, which is `_class_name` in a config.json."""
