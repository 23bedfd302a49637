"""Bundled latent folders are stock pipelines, whose guided images ours equal from the same noise."""

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, StableDiffusionPipeline
from diffusers import FlowMatchEulerDiscreteScheduler as FLOW
from safetensors.torch import load_file

from ptq_diffusion.model import Condition, DiffusersDenoiser
from ptq_diffusion.model.loading import MODELS
from ptq_diffusion.model.text.encoders import TextEncoders
from ptq_diffusion.sampler import FlowEuler
from tests.model.test_pipelines import SAMPLER, STEPS, assert_same, images, noise

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


def flow(folder, latents):
    """No stock pipeline of its network samples with its scheduler: that of `transformer` has its inputs scaled."""
    network, vae, scheduler = (
        kind.from_pretrained(folder, subfolder=name, local_files_only=True)
        for kind, name in ((DiTTransformer2DModel, "transformer"), (AutoencoderKL, "vae"), (FLOW, "scheduler"))
    )
    scheduler.set_timesteps(STEPS)
    labels, x = torch.tensor([1000, 1000, *LABELS]), latents
    for t in scheduler.timesteps:
        null, conditional = network(torch.cat([x, x]), timestep=t.expand(4), class_labels=labels).sample.chunk(2)
        x = scheduler.step(null + SCALE * (conditional - null), t, x).prev_sample
    decoded = vae.decode(x / vae.config.scaling_factor).sample
    return (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def prompted(folder, latents):
    stock = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    return stock(PROMPTS, latents=latents, **OPTIONS).images


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "stock"),
    [("cifar10_ldm", class_token), ("cifar10_dit", transformer), ("cifar10_dit_flow", flow), ("emoji_sd", prompted)],
)
@torch.no_grad()
def test_guided_images_are_those_of_the_stock_pipeline(name, stock):
    folder = MODELS.path(f"bundled:{name}")
    denoiser = DiffusersDenoiser.from_folder(str(folder))
    if name == "emoji_sd":
        condition, null = TextEncoders(str(folder)).rows_and_negative(PROMPTS, "")
    else:
        condition, null = Condition(labels=torch.tensor(LABELS)), denoiser.null
    expected = stock(folder, noise(denoiser))
    sampler = FlowEuler(STEPS) if stock is flow else SAMPLER
    assert_same(images(folder, condition, null.expanded(2), SCALE, sampler), expected)


@pytest.mark.parametrize("name", ["cifar10_ldm", "cifar10_dit", "cifar10_dit_flow", "emoji_sd"])
def test_they_are_as_small_as_they_are_to_be(name):
    folder = MODELS.path(f"bundled:{name}")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 8_000_000
    denoiser = DiffusersDenoiser.from_folder(str(folder))
    assert sum(site.macs for site in denoiser.sites()) + denoiser.attention_macs() <= 150_000_000
