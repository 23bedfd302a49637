"""Unconditional diffusers `UNet2DModel` networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.family.family import Family


class UNet2D(Family):
    """`UNet2DModel` without class labels. One with twice as many output as input channels predicts a variance too."""

    network_class = UNet2DModel
    first, last = "conv_in", "conv_out"

    def shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        if config["class_embed_type"] is not None or config["num_class_embeds"] is not None:
            raise ValueError("expected an unconditional UNet2DModel, got one with class embeddings; use another model")
        if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
            raise ValueError(
                f"expected as many output channels as the {config['in_channels']} input channels, or twice as many, "
                f"got {config['out_channels']}"
            )
        size = config["sample_size"]
        if size is None:
            raise ValueError("expected a UNet2DModel with a sample_size; set sample_size in its config.json")
        height, width = (size, size) if isinstance(size, int) else size
        return config["in_channels"], height, width

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        if condition is not None:
            raise ValueError("expected no condition of an unconditional UNet2DModel, got one; leave it out")
        # diffusers would cut a number that is no tensor down to a whole time.
        return network(x_t, torch.as_tensor(t)).sample

    def blocks(self, network: nn.Module) -> Sequence[str]:
        return [name for name, module in network.named_modules() if isinstance(module, ResnetBlock2D | Attention)]

    def attentions(self, network: nn.Module) -> Sequence[str]:
        return [name for name, module in network.named_modules() if isinstance(module, Attention)]
