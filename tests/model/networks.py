"""Networks of `UNet2DModel`, as small as can be."""

from diffusers import UNet2DModel

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.family import FAMILIES


def small(**options):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,)}
    return UNet2DModel(
        **{"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 2} | blocks | options
    )


def around(network):
    return DiffusersDenoiser(network, FAMILIES["UNet2DModel"], network.config, {})
