"""The original first stage, a KL or VQ autoencoder, as the network of diffusers that computes the same."""

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, ModelMixin, VQModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from ptq_diffusion.model.original.settings import FirstStage

CODEBOOK = "quantize.embedding.weight"


def first_stage_config(state: Mapping[str, Tensor], kind: FirstStage, scale_factor: float) -> dict[str, Any]:
    """The options of the autoencoder, read from the shapes of its tensors.

    Args:
        state: by the original names, without the prefix of the first stage.
        kind: KL or VQ.
        scale_factor: of latents.

    Raises:
        ValueError: the state lacks a tensor, or has attention at a level, which diffusers' autoencoders have not.
    """
    if odd := [name for name in state if ".attn." in name]:
        raise ValueError(
            f"expected a first stage with attention in its middle alone, got {odd[0]}; diffusers has no such "
            "autoencoder"
        )
    levels = len({name.split(".")[2] for name in state if name.startswith("encoder.down.")})
    blocks = len({name.split(".")[4] for name in state if name.startswith("encoder.down.0.block.")})
    channels = tuple(len(state[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(levels))
    config = {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": len(state["decoder.conv_out.weight"]),
        "block_out_channels": channels,
        "layers_per_block": blocks,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "scaling_factor": scale_factor,
    }
    if kind == "kl":
        return config
    entries, width = state[CODEBOOK].shape
    return config | {"num_vq_embeddings": entries, "vq_embed_dim": width}


def first_stage_class(kind: FirstStage) -> type[ModelMixin]:
    """The diffusers class."""
    return AutoencoderKL if kind == "kl" else VQModel


def first_stage_tensors(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The autoencoder's tensors under the names of diffusers."""
    tensors: dict[str, Tensor] = convert_ldm_vae_checkpoint(dict(state), config)
    return tensors | {name: state[name] for name in (CODEBOOK,) if name in state}
