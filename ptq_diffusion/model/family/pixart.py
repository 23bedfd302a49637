"""Diffusers `PixArtTransformer2DModel` networks."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import PixArtTransformer2DModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.family.family import plain_attentions, times
from ptq_diffusion.model.family.patched import PatchedFamily

TOKENS = 120
"""Tokens of a prompt, as in the pipeline of PixArt-alpha."""
FACTOR = 8
"""Pixels of an image by a pixel of a latent: all PixArt networks share one autoencoder's layout."""
WITH_RESOLUTION = 128
"""The sample_size of networks that are told the resolution where their configuration does not say."""


class PixArt(PatchedFamily):
    """`PixArtTransformer2DModel`, Chen et al., ICLR 2024, arXiv 2310.00426: embeddings of prompts and their mask.

    Networks that are told the image's resolution and aspect ratio are told those of the state, 8 x 8 pixels for each
    of the latent's, as in the stock pipeline.
    """

    network_class = PixArtTransformer2DModel
    block_classes = (BasicTransformerBlock,)
    first, last = "pos_embed.proj", "proj_out"

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        width = config["caption_channels"] or config["cross_attention_dim"]
        return {"embeddings": (TOKENS, width), "mask": (TOKENS,)}

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        tensors, config = self.required(network, condition), network.config
        return network(
            x_t,
            encoder_hidden_states=tensors["embeddings"],
            encoder_attention_mask=tensors["mask"],
            timestep=times(t, x_t),
            added_cond_kwargs=_resolution(x_t) if _is_told_resolution(config) else None,
        ).sample

    def attentions(self, network: nn.Module) -> Sequence[str]:
        return plain_attentions(network)


def _is_told_resolution(config: Any) -> bool:  # noqa: ANN401
    told = config["use_additional_conditions"]
    return config["sample_size"] == WITH_RESOLUTION if told is None else told


def _resolution(x_t: Tensor) -> dict[str, Tensor]:
    """The size of the image in pixels, (B, 2), and its height by its width, (B, 1)."""
    height, width = x_t.shape[2:]
    size = x_t.new_tensor([FACTOR * height, FACTOR * width])
    ratio = x_t.new_tensor([height / width])
    return {"resolution": size.expand(x_t.shape[0], 2), "aspect_ratio": ratio.expand(x_t.shape[0], 1)}
