"""Diffusers `FluxTransformer2DModel` networks."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.family.family import Family, times
from ptq_diffusion.model.family.state_size import require_channels

SIDE = 128
"""Latent pixels of a side, as in the stock pipeline: a network's configuration says no size."""
PATCH = 2
"""The side of the patch of a latent that is one token, as in the stock pipeline."""
TOKENS = 512
"""Tokens of a prompt, as in the stock pipeline."""
TIMES = 1000
"""Times of the training by those that the network is told."""


class Flux(Family):
    """`FluxTransformer2DModel`, Black Forest Labs, 2024: embeddings of prompts, pooled ones, and often the guidance.

    A state (B, C, H, W) is packed into tokens of 2 x 2 pixels, channel by channel, with their places in rows and
    columns; prompts have place 0. Times are those of the training, 0 to 1000, of which the network is told a
    thousandth. Attention has processors of its own: its products stay float.
    """

    network_class = FluxTransformer2DModel
    block_classes = (FluxTransformerBlock, FluxSingleTransformerBlock)
    first, last = "x_embedder", "proj_out"

    def shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        channels = require_channels(config)
        if config["patch_size"] != 1 or channels % PATCH**2 or (config["out_channels"] or channels) != channels:
            raise ValueError(
                f"expected a FluxTransformer2DModel of patch_size 1 whose channels are those of {PATCH}x{PATCH} latent "
                f"pixels, in and out, got patch_size {config['patch_size']} with {channels} and "
                f"{config['out_channels']} channels; use another model"
            )
        return channels // PATCH**2, SIDE, SIDE

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        needs: dict[str, tuple[int, ...]] = {
            "embeddings": (TOKENS, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }
        return needs | ({"scale": ()} if config["guidance_embeds"] else {})

    def pipeline_facts(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        _, height, width = self.shape(config)
        return {"image_seq_len": height * width // PATCH**2, "linear_sigmas": True}

    def patch_size(self, config: Mapping[str, Any]) -> int:  # noqa: ARG002
        return PATCH

    def features(self, inputs: Tensor, size: tuple[int, int], config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        return inputs.transpose(1, 2).unflatten(2, (size[0] // PATCH, size[1] // PATCH))

    def unpatched(self, patches: Tensor, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        return pixel_shuffle(patches, PATCH)

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        tensors = self.required(network, condition)
        size = x_t.shape[2] // PATCH, x_t.shape[3] // PATCH
        embeddings = tensors["embeddings"]
        tokens = network(
            packed(x_t),
            encoder_hidden_states=embeddings,
            pooled_projections=tensors["pooled"],
            timestep=times(t, x_t).to(x_t.dtype) / TIMES,
            img_ids=_places(size, x_t),
            txt_ids=x_t.new_zeros(embeddings.shape[1], 3),
            guidance=tensors.get("scale"),
        ).sample
        return unpacked(tokens, size)


def packed(x_t: Tensor) -> Tensor:
    """A state, (B, C, H, W), as tokens of 2 x 2 pixels, row by row, (B, H/2 x W/2, 4 C)."""
    return pixel_unshuffle(x_t, PATCH).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The state of `packed` tokens in so many rows and columns."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, size), PATCH)


def _places(size: tuple[int, int], like: Tensor) -> Tensor:
    """The place (0, row, column) of every token in so many rows and columns, (rows x columns, 3)."""
    rows, columns = size
    places = like.new_zeros(rows, columns, 3)
    places[..., 1] = torch.arange(rows, device=like.device)[:, None]
    places[..., 2] = torch.arange(columns, device=like.device)
    return places.flatten(0, 1)
