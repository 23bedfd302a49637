"""The original UNet in the layout of diffusers: the configuration, and every tensor under its new name."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ptq_diffusion.model.family.unet_2d import HEADS
from ptq_diffusion.model.original.settings import UNetSettings

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet_config(settings: UNetSettings) -> dict[str, Any]:
    """The options of the diffusers network: a `UNet2DConditionModel` with a context, else a `UNet2DModel`.

    Raises:
        ValueError: attention has another number of channels a head at different levels, which a `UNet2DModel` cannot
            say, and no number of heads that is the same.
    """
    config = {
        "sample_size": settings.image_size,
        "in_channels": settings.in_channels,
        "out_channels": settings.out_channels,
        "block_out_channels": settings.channels,
        "layers_per_block": settings.num_res_blocks,
        "down_block_types": tuple(_block(settings, level, "Down") for level in range(len(settings.channels))),
        "up_block_types": tuple(_block(settings, level, "Up") for level in reversed(range(len(settings.channels)))),
        "resnet_time_scale_shift": "scale_shift" if settings.use_scale_shift_norm else "default",
    }
    if settings.use_spatial_transformer:
        heads = tuple(settings.heads(channels) for channels in settings.channels)
        # diffusers calls the number of heads attention_head_dim here.
        return config | {
            "cross_attention_dim": settings.context_dim,
            "transformer_layers_per_block": settings.transformer_depth,
            "attention_head_dim": heads,
        }
    kind = "resnet" if settings.resblock_updown else "conv"
    # Without the last, diffusers leaves out the norm of the middle's attention where time scales and shifts.
    config |= {"downsample_type": kind, "upsample_type": kind, "attn_norm_num_groups": 32}
    if settings.num_head_channels != -1:
        return config | {"attention_head_dim": settings.num_head_channels}
    return config | {"attention_head_dim": None, HEADS: settings.num_heads}


def require_heads(settings: UNetSettings) -> None:
    """Refuse heads of attention that do not divide the channels of a level.

    Raises:
        ValueError: the message names the level.
    """
    last = len(settings.channels) - 1
    for level, channels in enumerate(settings.channels):
        # The middle block, of the last level's channels, attends whatever the levels do.
        attends = settings.attends(level) or level == last
        heads = settings.heads(channels) if settings.num_head_channels else 0
        if attends and (heads < 1 or channels % heads):
            raise ValueError(
                f"expected num_heads or num_head_channels of the configuration to divide the {channels} channels of "
                f"level {level}, got {settings.num_heads} heads and {settings.num_head_channels} channels a head; give "
                "the configuration that belongs to the checkpoint"
            )


def unet_tensors(state: Mapping[str, Tensor], settings: UNetSettings) -> dict[str, Tensor]:
    """The network's tensors under the names of diffusers.

    Args:
        state: by the original names, without the prefix of the network.
        settings: of the network.

    Raises:
        ValueError: the settings do not lead to one of the names, or to heads that divide the rows of attention.
    """
    homes = dict(ENDS)
    for origin, home in _places(settings):
        names = RESNET if ".resnets." in home or _resizes(settings, home) else {"": ""}
        homes |= {_joined(origin, old): _joined(home, new) for old, new in names.items()}
    # A longer name wins: middle_block.1 is one of attention, middle_block.1.norm its norm.
    ordered = sorted(homes, key=len, reverse=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        origin = next((place for place in ordered if name.startswith(f"{place}.")), "")
        if not origin:
            raise ValueError(
                f"expected tensors of the network that the configuration describes, got {name}, for which it has no "
                "place; give the configuration that belongs to the checkpoint"
            )
        rest = name.removeprefix(f"{origin}.")
        tensors |= _attention(f"{homes[origin]}.{rest}", tensor, settings)
    return tensors


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if name else place


def _block(settings: UNetSettings, level: int, way: str) -> str:
    if settings.attends(level):
        return f"CrossAttn{way}Block2D" if settings.use_spatial_transformer else f"Attn{way}Block2D"
    return f"Resnet{way}sampleBlock2D" if settings.resblock_updown else f"{way}Block2D"


def _resizes(settings: UNetSettings, home: str) -> bool:
    return settings.resblock_updown and "samplers." in home


def _places(settings: UNetSettings) -> Iterator[tuple[str, str]]:
    """Original places and those of diffusers, in the order in which the original network makes them."""
    last = len(settings.channels) - 1
    down = 1
    for level in range(last + 1):
        for block in range(settings.num_res_blocks):
            yield f"input_blocks.{down}.0", f"down_blocks.{level}.resnets.{block}"
            if settings.attends(level):
                yield f"input_blocks.{down}.1", f"down_blocks.{level}.attentions.{block}"
            down += 1
        if level < last:
            # A convolution is a layer within a Downsample, a residual block is one itself.
            origin = f"input_blocks.{down}.0" if settings.resblock_updown else f"input_blocks.{down}.0.op"
            home = f"down_blocks.{level}.downsamplers.0"
            yield origin, home if settings.resblock_updown else f"{home}.conv"
            down += 1
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    yield from _places_up(settings, last)


def _places_up(settings: UNetSettings, last: int) -> Iterator[tuple[str, str]]:
    up = 0
    for level in reversed(range(last + 1)):
        for block in range(settings.num_res_blocks + 1):
            yield f"output_blocks.{up}.0", f"up_blocks.{last - level}.resnets.{block}"
            if settings.attends(level):
                yield f"output_blocks.{up}.1", f"up_blocks.{last - level}.attentions.{block}"
            if level > 0 and block == settings.num_res_blocks:
                place = f"output_blocks.{up}.{1 + settings.attends(level)}"
                home = f"up_blocks.{last - level}.upsamplers.0"
                yield (place, home) if settings.resblock_updown else (f"{place}.conv", f"{home}.conv")
            up += 1


def _attention(name: str, tensor: Tensor, settings: UNetSettings) -> dict[str, Tensor]:
    """A tensor of attention without a context as diffusers has it; any other as it is.

    The original computes q, k and v by one 1x1 convolution, whose outputs are q, k and v of the first head, then those
    of the second, and on (`QKVAttentionLegacy`).
    """
    place, _, kind = name.rpartition(".")
    home, _, layer = place.rpartition(".")
    if ".attentions." not in f"{place}." or settings.use_spatial_transformer:
        return {name: tensor}
    if layer == "norm":
        return {f"{home}.group_norm.{kind}": tensor}
    flat = tensor.flatten(1) if kind == "weight" else tensor
    if layer == "proj_out":
        return {f"{home}.to_out.0.{kind}": flat}
    heads = settings.heads(len(flat) // 3)
    if heads < 1 or len(flat) % (3 * heads):
        raise ValueError(
            f"expected queries, keys and values of {heads} heads, as the configuration describes them, got {len(flat)} "
            f"rows of {home}; give the configuration that belongs to the checkpoint"
        )
    by_head = flat.unflatten(0, (heads, 3, -1))
    return {
        f"{home}.to_{letter}.{kind}": by_head[:, place].flatten(0, 1).contiguous() for place, letter in enumerate("qkv")
    }
