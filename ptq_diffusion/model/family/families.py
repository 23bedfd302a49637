"""All families of networks."""

from ptq_diffusion.model.family.dit import DiT
from ptq_diffusion.model.family.family import Family
from ptq_diffusion.model.family.flux import Flux
from ptq_diffusion.model.family.pixart import PixArt
from ptq_diffusion.model.family.sana import Sana
from ptq_diffusion.model.family.sd3 import SD3
from ptq_diffusion.model.family.unet_2d import UNet2D
from ptq_diffusion.model.family.unet_2d_condition import UNet2DCondition

FAMILIES: dict[str, Family] = {
    family.network_class.__name__: family
    for family in (UNet2D(), UNet2DCondition(), DiT(), PixArt(), SD3(), Flux(), Sana())
}
"""Every family by the name of its diffusers class, which is `_class_name` in a config.json."""
