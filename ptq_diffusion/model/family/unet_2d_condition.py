"""Diffusers `UNet2DConditionModel` networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.family.family import Family, plain_attentions
from ptq_diffusion.model.family.skip_channels import skip_channels
from ptq_diffusion.model.family.state_size import require_channels, sides

TOKENS = 77
"""Tokens of a prompt, as CLIP has."""
TIME_IDS = 6
"""Numbers that SDXL is told: original size, crop and target size."""
SUPPORTED = {
    "class_embed_type": (None,),
    "addition_embed_type": (None, "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "time_cond_proj_dim": (None,),
    "attention_type": ("default",),
}
"""The values of options that decide with which conditions a network is asked, None where it is asked without."""


class UNet2DCondition(Family):
    """`UNet2DConditionModel` of Stable Diffusion 1 and 2, SDXL, class-conditional LDM and the base of DeepFloyd IF.

    It reads embeddings of prompts; labels with `num_class_embeds`; pooled embeddings and time ids with
    `addition_embed_type: text_time`.
    """

    network_class = UNet2DConditionModel
    has_graphs = True
    block_classes = (ResnetBlock2D, BasicTransformerBlock, Attention)
    first, last = "conv_in", "conv_out"

    def shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        for option, values in SUPPORTED.items():
            if config[option] not in values:
                expected = " or ".join(str(value) for value in values)
                raise ValueError(
                    f"expected a UNet2DConditionModel with {option}={expected}, got {config[option]!r}, a condition "
                    "that is not supported; use another model"
                )
        return require_channels(config), *sides(config, "UNet2DConditionModel")

    def accepts_time_zero(self, config: Mapping[str, Any]) -> bool:
        """False with Fourier embeddings, which take the logarithm of the time."""
        return config["time_embedding_type"] != "fourier"

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        needs: dict[str, tuple[int, ...]] = {}
        if config["num_class_embeds"] is not None:
            needs["labels"] = ()
        if any("CrossAttn" in str(block) for block in _block_types(config)):
            needs["embeddings"] = (TOKENS, _embedding_width(config))
        if config["addition_embed_type"] == "text_time":
            times_width = TIME_IDS * config["addition_time_embed_dim"]
            needs["pooled"] = (config["projection_class_embeddings_input_dim"] - times_width,)
            needs["ids"] = (TIME_IDS,)
        return needs

    def classes(self, config: Mapping[str, Any]) -> int | None:
        return config["num_class_embeds"]

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        tensors = self.required(network, condition)
        added = {"text_embeds": tensors["pooled"], "time_ids": tensors["ids"]} if "ids" in tensors else None
        return network(
            x_t,
            torch.as_tensor(t),
            encoder_hidden_states=tensors.get("embeddings"),
            class_labels=tensors.get("labels"),
            added_cond_kwargs=added,
        ).sample

    def blocks(self, network: nn.Module) -> Sequence[str]:
        kinds = ResnetBlock2D | BasicTransformerBlock
        inside = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, kinds))
        return [name for name in super().blocks(network) if not name.startswith(inside)]

    def attentions(self, network: nn.Module) -> Sequence[str]:
        return plain_attentions(network)

    def skips(self, network: nn.Module) -> Mapping[str, int]:
        return skip_channels(network)


def _block_types(config: Mapping[str, Any]) -> list[str | None]:
    return [*config["down_block_types"], config["mid_block_type"], *config["up_block_types"]]


def _embedding_width(config: Mapping[str, Any]) -> int:
    if config["encoder_hid_dim_type"] is not None:
        return config["encoder_hid_dim"]
    width = config["cross_attention_dim"]
    return width[0] if isinstance(width, list | tuple) else width
