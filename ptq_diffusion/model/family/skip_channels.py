"""Skip connections of diffusers' UNets, as the layers see them that read both a state and a skip."""

from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import nn


def skip_channels(network: nn.Module) -> dict[str, int]:
    """The channels of the state, by the names of the layers that read it in front of a skip connection.

    Every residual block on the way up is given both concatenated; `conv1` and `conv_shortcut` read them, the first
    after a normalization, which keeps the order of channels.
    """
    unet: Any = network
    channels, state = dict[str, int](), unet.config.block_out_channels[-1]
    for i, block in enumerate(unet.up_blocks):
        for j, resnet in enumerate(getattr(block, "resnets", ())):
            if not isinstance(resnet, ResnetBlock2D):
                continue
            if 0 < state < resnet.in_channels:
                names = ["conv1"] if resnet.conv_shortcut is None else ["conv1", "conv_shortcut"]
                channels |= {f"up_blocks.{i}.resnets.{j}.{name}": state for name in names}
            state = resnet.out_channels
    return channels
