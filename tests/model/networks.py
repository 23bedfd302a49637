"""Networks of every family, as small as can be, with random weights."""

from functools import cache

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)

from ptq_diffusion.model import Condition, DiffusersDenoiser
from ptq_diffusion.model.family import FAMILIES

BLOCKS = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
CROSS = BLOCKS | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 6,
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 2, "sample_size": 8}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 29,
    "use_linear_projection": True,
}
NETWORKS = {
    "pixels": (UNet2DModel, BLOCKS | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}),
    "classes": (UNet2DModel, BLOCKS | {"in_channels": 2, "out_channels": 4, "num_class_embeds": 5}),
    "stable diffusion": (UNet2DConditionModel, CROSS),
    "sdxl": (UNet2DConditionModel, CROSS | SDXL),
    "prompts and classes": (UNet2DConditionModel, CROSS | {"num_class_embeds": 5, "sample_size": (8, 12)}),
    "dit": (DiTTransformer2DModel, HEADS | {"out_channels": 8, "norm_num_groups": 2, "num_embeds_ada_norm": 10}),
    "pixart": (
        PixArtTransformer2DModel,
        HEADS | {"norm_num_groups": 2, "cross_attention_dim": 12, "caption_channels": 5, "in_channels": 6}
        | {"out_channels": 6, "use_additional_conditions": True},
    ),
    "sd3": (
        SD3Transformer2DModel,
        HEADS | {"in_channels": 16, "joint_attention_dim": 5, "caption_projection_dim": 12}
        | {"pooled_projection_dim": 3, "pos_embed_max_size": 6},
    ),
    "flux": (
        FluxTransformer2DModel,
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_single_layers": 1, "in_channels": 8}
        | {"joint_attention_dim": 5, "pooled_projection_dim": 3, "guidance_embeds": True, "axes_dims_rope": (2, 2, 4)},
    ),
    "sana": (
        SanaTransformer2DModel,
        HEADS | {"in_channels": 3, "out_channels": 3, "num_cross_attention_heads": 2, "cross_attention_head_dim": 6}
        | {"cross_attention_dim": 12, "caption_channels": 5, "patch_size": 2, "timestep_scale": 0.5},
    ),
}  # fmt: skip
TOKENS = 3


def small(**options):
    """A `UNet2DModel`."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (4,)}
    return UNet2DModel(
        **{"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 2} | blocks | options
    )


def around(network, classes=None):
    family = FAMILIES[type(network).__name__]
    return DiffusersDenoiser(network.eval().requires_grad_(False), family, network.config, {}, classes)


def random_network(name, **options):
    """A network of `NETWORKS`, none of whose weights is 0, so that every condition matters."""
    network_class, defaults = NETWORKS[name]
    if network_class is UNet2DModel:
        defaults = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2} | defaults
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network_class(**defaults | options)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    return network


@cache
def denoiser_of(name):
    """The denoiser around a network of `NETWORKS`; it is not to be changed."""
    return around(random_network(name))


def states_of(denoiser, count=2):
    """States of 8 latent pixels where the family leaves the size open."""
    height, width = min(denoiser.shape[1], 8), min(denoiser.shape[2], 12)
    width = height if denoiser.shape[1] == denoiser.shape[2] else width
    return torch.randn(count, denoiser.shape[0], height, width, generator=torch.Generator().manual_seed(1))


def condition_of(denoiser, count=2):
    """A random condition of few tokens."""
    generator, tensors = torch.Generator().manual_seed(2), {}
    for name, row in denoiser.family.needs(denoiser.config).items():
        shape = (count, TOKENS, *row[1:]) if name in ("embeddings", "mask") else (count, *row)
        tensors[name] = torch.randn(shape, generator=generator)
    if "labels" in tensors:
        tensors["labels"] = torch.arange(1, count + 1)
    if "mask" in tensors:
        tensors["mask"] = (torch.arange(TOKENS) < TOKENS - 1).long().expand(count, TOKENS)
    return Condition(**tensors) if tensors else None
