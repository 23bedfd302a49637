"""Bundled latent folders are stock pipelines, whose guided images ours equal from the same noise."""

import pytest
import torch
from diffusers import DiTPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

from ptq_diffusion.model import Condition, DiffusersDenoiser
from ptq_diffusion.model.loading import MODELS
from ptq_diffusion.model.text import encode_prompts
from tests.model.test_pipelines import STEPS, assert_same, images, noise

LABELS, SCALE = [3, 8], 2.5
OPTIONS = {"guidance_scale": SCALE, "num_inference_steps": STEPS, "output_type": "np"}
PROMPTS = ["red apple", "snowman"]


def class_token(folder, latents):
    table = load_file(folder / "class_embedder" / "diffusion_pytorch_model.safetensors")["weight"].float()
    stock = StableDiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None, local_files_only=True)
    prompts = {"prompt_embeds": table[LABELS, None], "negative_prompt_embeds": table[[-1, -1], None]}
    return stock(latents=latents, **prompts, **OPTIONS).images


def transformer(folder, latents):
    """This pipeline draws its own noise, from the generator that `noise` has too."""
    stock = DiTPipeline.from_pretrained(folder, local_files_only=True)
    generator = torch.Generator().manual_seed(5)
    assert torch.randn(latents.shape, generator=generator).equal(latents)
    return stock(LABELS, generator=generator.manual_seed(5), **OPTIONS).images


def prompted(folder, latents):
    stock = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return stock(PROMPTS, latents=latents, **OPTIONS).images


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "stock"), [("cifar10_ldm", class_token), ("cifar10_dit", transformer), ("emoji_sd", prompted)]
)
@torch.no_grad()
def test_guided_images_are_those_of_the_stock_pipeline(name, stock):
    folder = MODELS.path(f"bundled:{name}")
    denoiser = DiffusersDenoiser.from_folder(str(folder))
    if name == "emoji_sd":
        condition, null = encode_prompts(str(folder), PROMPTS, "")
    else:
        condition, null = Condition(labels=torch.tensor(LABELS)), denoiser.null
    expected = stock(folder, noise(denoiser))
    assert_same(images(folder, condition, null.expanded(2), SCALE), expected)


@pytest.mark.parametrize("name", ["cifar10_ldm", "cifar10_dit", "emoji_sd"])
def test_they_are_as_small_as_they_are_to_be(name):
    folder = MODELS.path(f"bundled:{name}")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8_000_000
    denoiser = DiffusersDenoiser.from_folder(str(folder))
    assert sum(site.macs for site in denoiser.sites()) + denoiser.attention_macs() <= 150_000_000
