"""Diffusers `SD3Transformer2DModel` networks."""

from collections.abc import Mapping
from typing import Any

from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.family.family import times
from ptq_diffusion.model.family.patched import PatchedFamily

TOKENS = 77 + 256
"""Tokens of a prompt, of CLIP and of T5, as in the stock pipeline."""


class SD3(PatchedFamily):
    """`SD3Transformer2DModel`, Esser et al., ICML 2024, arXiv 2403.03206: embeddings of prompts and pooled ones.

    Its attention joins the tokens of image and prompt, which `AttnProcessor` does not: those products stay float.
    """

    network_class = SD3Transformer2DModel
    block_classes = (JointTransformerBlock,)
    first, last = "pos_embed.proj", "proj_out"

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        return {
            "embeddings": (TOKENS, config["joint_attention_dim"]),
            "pooled": (config["pooled_projection_dim"],),
        }

    def pipeline_facts(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        _, height, width = self.shape(config)
        return {"image_seq_len": height * width // self.patch_size(config) ** 2}

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        tensors = self.required(network, condition)
        return network(
            x_t,
            encoder_hidden_states=tensors["embeddings"],
            pooled_projections=tensors["pooled"],
            timestep=times(t, x_t),
        ).sample
