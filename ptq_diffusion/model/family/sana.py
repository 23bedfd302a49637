"""Diffusers `SanaTransformer2DModel` networks."""

from collections.abc import Mapping
from typing import Any

from diffusers import SanaTransformer2DModel
from diffusers.models.transformers.sana_transformer import SanaTransformerBlock
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.family.family import times
from ptq_diffusion.model.family.patched import PatchedFamily

TOKENS = 300
"""Tokens of a prompt, as in the stock pipeline."""


class Sana(PatchedFamily):
    """`SanaTransformer2DModel`, Xie et al., ICLR 2025, arXiv 2410.10629: embeddings of prompts and their mask.

    Its attention to the image is linear and has processors of its own: its products stay float.
    """

    network_class = SanaTransformer2DModel
    block_classes = (SanaTransformerBlock,)
    first, last = "patch_embed.proj", "proj_out"

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        needs: dict[str, tuple[int, ...]] = {"embeddings": (TOKENS, config["caption_channels"]), "mask": (TOKENS,)}
        return needs | ({"scale": ()} if config["guidance_embeds"] else {})

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        tensors = self.required(network, condition)
        config: Any = network.config
        scale = tensors.get("scale")
        return network(
            x_t,
            encoder_hidden_states=tensors["embeddings"],
            encoder_attention_mask=tensors["mask"],
            timestep=times(t, x_t) * config["timestep_scale"],
            guidance=None if scale is None else scale * config["guidance_embeds_scale"],
        ).sample
