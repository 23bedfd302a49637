"""Stable Diffusion folders of trained networks."""

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel


def save_stable_diffusion(
    out: Path,
    unet: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
    scheduler: SchedulerMixin,
    text_encoder: Any = None,  # noqa: ANN401
    tokenizer: Any = None,  # noqa: ANN401
) -> None:
    """Write a `StableDiffusionPipeline` folder, UNet and autoencoder in float16.

    Args:
        out: the folder.
        unet: the network.
        autoencoder: of its latents.
        scheduler: that it was trained with.
        text_encoder: of transformers, or None; in float32, for transformers reads one in its file's type, which would
            not fit the others then.
        tokenizer: of transformers, or None.
    """
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
