"""Diffusers `UNet2DModel` networks, unconditional or with class labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.family.family import Family

LARGEST = 2**14
"""Pixels of a side: a larger number is an error of writing."""


class UNet2D(Family):
    """`UNet2DModel`. One with twice as many output as input channels predicts a variance too."""

    network_class = UNet2DModel
    first, last = "conv_in", "conv_out"

    def shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        if config["class_embed_type"] is not None:
            raise ValueError(
                "expected a UNet2DModel without classes or with num_class_embeds, got one with class_embed_type="
                f"{config['class_embed_type']!r}; use another model"
            )
        if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
            raise ValueError(
                f"expected as many output channels as the {config['in_channels']} input channels, or twice as many, "
                f"got {config['out_channels']}"
            )
        if config["time_embedding_type"] == "learned":
            raise ValueError(
                "expected a UNet2DModel with positional or fourier time embeddings, got learned ones, which know whole "
                "times only; use another model"
            )
        return config["in_channels"], *_size(config)

    def answers_at_zero(self, config: Mapping[str, Any]) -> bool:
        """False with Fourier embeddings, which take the logarithm of the time; the output is also divided by it."""
        return config["time_embedding_type"] != "fourier"

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        return {} if config["num_class_embeds"] is None else {"labels": ()}

    def classes(self, config: Mapping[str, Any]) -> int | None:
        return config["num_class_embeds"]

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        config: Any = network.config
        labels = None if condition is None else condition.labels
        if condition is not None and config.num_class_embeds is None:
            raise ValueError("expected no condition of an unconditional UNet2DModel, got one; leave it out")
        if labels is None and config.num_class_embeds is not None:
            raise ValueError(
                "expected class labels for this UNet2DModel, got a condition without; set condition=labels"
            )
        # diffusers would cut a number that is no tensor down to a whole time.
        return network(x_t, torch.as_tensor(t), class_labels=labels).sample

    def blocks(self, network: nn.Module) -> Sequence[str]:
        return [name for name, module in network.named_modules() if isinstance(module, ResnetBlock2D | Attention)]

    def attentions(self, network: nn.Module) -> Sequence[str]:
        return [name for name, module in network.named_modules() if isinstance(module, Attention)]


def _size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width, which every block but the last halves and the way up doubles again.

    Raises:
        ValueError: they are no sizes, or their halves are no whole numbers.
    """
    size = config["sample_size"]
    if size is None:
        raise ValueError("expected a UNet2DModel with a sample_size; set sample_size in its config.json")
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= LARGEST for side in sides):
        raise ValueError(
            f"expected a sample_size of one or two whole numbers of 1 to {LARGEST}, got {size!r}; set sample_size in "
            "the network's config.json"
        )
    height, width = sides
    levels = len(config["down_block_types"]) - 1
    if height % 2**levels or width % 2**levels:
        raise ValueError(
            f"expected a sample_size that is a multiple of 2^{levels} = {2**levels}, as the network halves its input "
            f"{levels} times, got {height}x{width}; use a network of fewer levels or other sizes"
        )
    return height, width
