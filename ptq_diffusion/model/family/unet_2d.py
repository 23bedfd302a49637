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
from ptq_diffusion.model.family.skip_channels import skip_channels
from ptq_diffusion.model.family.state_size import require_channels, sides

HEADS = "attention_heads"
"""Heads of attention, the same at every level, as in the original LDM-8 network of churches: diffusers knows only the
channels of a head, the same at every level."""


class UNet2D(Family):
    """`UNet2DModel`. One with twice as many output as input channels predicts a variance too."""

    network_class = UNet2DModel
    has_graphs = True
    block_classes = (ResnetBlock2D, Attention)
    first, last = "conv_in", "conv_out"
    options_beside = {HEADS: int}

    def build(self, config: Mapping[str, Any]) -> UNet2DModel:
        network: UNet2DModel = super().build({name: value for name, value in config.items() if name != HEADS})
        if (heads := config.get(HEADS)) is not None:
            for module in network.modules():
                if isinstance(module, Attention):
                    _set_heads(module, heads)
            network.register_to_config(**{HEADS: heads})
        return network

    def shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        if config["class_embed_type"] is not None:
            raise ValueError(
                "expected a UNet2DModel without classes or with num_class_embeds, got one with class_embed_type="
                f"{config['class_embed_type']!r}; use another model"
            )
        return require_channels(config), *_size(config)

    def accepts_time_zero(self, config: Mapping[str, Any]) -> bool:
        """False with Fourier embeddings, which take the logarithm of the time; the output is also divided by it."""
        return config["time_embedding_type"] != "fourier"

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        return {} if config["num_class_embeds"] is None else {"labels": ()}

    def classes(self, config: Mapping[str, Any]) -> int | None:
        return config["num_class_embeds"]

    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        labels = self.required(network, condition).get("labels")
        config: Any = network.config
        # diffusers would cut a number that is no tensor down to a whole time.
        time = _whole(t, config.num_train_timesteps) if config.time_embedding_type == "learned" else torch.as_tensor(t)
        return network(x_t, time, class_labels=labels).sample

    def attentions(self, network: nn.Module) -> Sequence[str]:
        return [name for name, module in network.named_modules() if isinstance(module, Attention)]

    def skips(self, network: nn.Module) -> Mapping[str, int]:
        return skip_channels(network)


def _set_heads(attention: Attention, heads: int) -> None:
    """Compute with another number of heads, whose projections have the same shapes.

    Raises:
        ValueError: the channels cannot be divided among them.
    """
    if heads < 1 or attention.inner_dim % heads:
        raise ValueError(
            f"expected {HEADS} to divide the {attention.inner_dim} channels of attention, got {heads}; mend config.json"
        )
    attention.heads, attention.scale = heads, (attention.inner_dim // heads) ** -0.5


def _whole(t: float | Tensor, rows: int) -> Tensor:
    """A time as a row of learned embeddings.

    Raises:
        ValueError: no row has this time.
    """
    time = torch.as_tensor(t)
    if not time.is_meta and (float(time) != int(time) or not 0 <= int(time) < rows):
        raise ValueError(
            f"expected a whole time from 0 to {rows - 1}, for which this UNet2DModel has learned "
            f"embeddings, got {float(time)}; use a sampler and a scheduler of these times"
        )
    return time.long()


def _size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width, which every block but the last halves and the way up doubles again.

    Raises:
        ValueError: they are no sizes, or their halves are no whole numbers.
    """
    height, width = sides(config, "UNet2DModel")
    levels = len(config["down_block_types"]) - 1
    if height % 2**levels or width % 2**levels:
        raise ValueError(
            f"expected a sample_size that is a multiple of 2^{levels} = {2**levels}, as the network halves its input "
            f"{levels} times, got {height}x{width}; use a network of fewer levels or other sizes"
        )
    return height, width
