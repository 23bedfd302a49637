"""Whole pipelines are sampled as their stock pipelines sample them, from the same noise to the same images."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    LDMPipeline,
    StableDiffusionPipeline,
)

from ptq_diffusion.model import Condition, DiffusersDenoiser
from ptq_diffusion.model.decoder import decoder_checksum, load_decoder, scaled_latents
from ptq_diffusion.model.loading import folder_checksum
from ptq_diffusion.sampler import DDIM, FlowEuler, State
from tests.model import pipelines
from tests.model.networks import condition_of

STEPS, SEED = 3, 5
SAMPLER = DDIM(STEPS, 0.0, {})
QUIET = pytest.mark.filterwarnings("ignore")


def noise(denoiser, count=2):
    return torch.randn(count, *denoiser.shape, generator=torch.Generator().manual_seed(SEED))


def images(folder, condition, null=None, scale=1.0, sampler=SAMPLER):
    """By our sampler and our decoder, (B, H, W, 3)."""
    denoiser, decoder = DiffusersDenoiser.from_folder(str(folder)), load_decoder(str(folder))
    table = sampler.table(denoiser.scheduler_config)
    state = table.start(noise(denoiser))
    for step in table:
        m = denoiser.predict(state.x, step, condition).m
        if null is not None:
            without = denoiser.predict(state.x, step, null).m
            m = without + scale * (m - without)
        state = step.advance(state, m, 0.0, torch.zeros_like(m))
    decoded = decoder.decode(state.x)
    assert decoded.shape[1:] == decoder.shape(denoiser.shape)
    return decoded.permute(0, 2, 3, 1).numpy()


def assert_same(ours, stock):
    assert 0.01 < stock.std() and ours.shape == stock.shape
    np.testing.assert_allclose(ours, stock, atol=1e-5)


@QUIET
@torch.no_grad()
def test_dit_with_guidance(tmp_path):
    pipelines.dit(tmp_path)
    stock = DiTPipeline.from_pretrained(tmp_path)
    options = {"guidance_scale": 3.0, "num_inference_steps": STEPS, "output_type": "np"}
    expected = stock([2, 7], generator=torch.Generator().manual_seed(SEED), **options).images
    denoiser = DiffusersDenoiser.from_folder(str(tmp_path))
    assert denoiser.classes == 10 and denoiser.null.labels.tolist() == [1000]
    assert_same(images(tmp_path, Condition(labels=torch.tensor([2, 7])), denoiser.null.expanded(2), 3.0), expected)


@QUIET
@torch.no_grad()
def test_classes_in_place_of_prompts(tmp_path):
    """The stock pipeline is given the embeddings of labels as those of prompts."""
    weight = pipelines.classes(tmp_path)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    denoiser = DiffusersDenoiser.from_folder(str(tmp_path))
    embeddings = {"prompt_embeds": weight[[2, 0], None], "negative_prompt_embeds": weight[[3, 3], None]}
    options = {"guidance_scale": 2.0, "num_inference_steps": STEPS, "output_type": "np", "height": 16, "width": 16}
    expected = stock(latents=noise(denoiser), **embeddings, **options).images
    assert_same(images(tmp_path, Condition(labels=torch.tensor([2, 0])), denoiser.null.expanded(2), 2.0), expected)


@QUIET
@torch.no_grad()
def test_latents_of_a_quantizing_autoencoder(tmp_path):
    pipelines.ldm().save_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(SEED)
    options = {"batch_size": 2, "num_inference_steps": STEPS, "output_type": "np"}
    assert_same(images(tmp_path, None), LDMPipeline.from_pretrained(tmp_path)(generator=generator, **options).images)


@QUIET
@torch.no_grad()
def test_decoding_is_that_of_stock_and_does_not_depend_on_the_other_images(tmp_path):
    kinds = {
        "shifted": (pipelines.vae(shift_factor=0.3, scaling_factor=0.7), lambda z: z / 0.7 + 0.3),
        "normed": (
            pipelines.vae(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[2.0] * 4, scaling_factor=0.7),
            lambda z: z * 2 / 0.7 + torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1),
        ),
        "vq": (pipelines.vq(4), lambda z: z / 0.5),
        "dc": (pipelines.dc(), lambda z: z / 0.4),
    }
    checksums = set()
    for name, (autoencoder, unscaled) in kinds.items():
        folder = tmp_path / name
        pipelines.stable_diffusion(folder, text=False).save_pretrained(folder)
        autoencoder.save_pretrained(folder / "vae")
        decoder = load_decoder(str(folder))
        z = torch.randn(3, autoencoder.config.latent_channels, 8, 8, generator=torch.Generator().manual_seed(1))
        if name in ("shifted", "normed"):
            torch.testing.assert_close(scaled_latents(unscaled(z), autoencoder.config), z)
        decoded = decoder.decode(z)
        expected = (autoencoder.decode(unscaled(z)).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=0)
        assert torch.equal(decoder.decode(torch.cat([z[:1], 2 * z[1:]]))[0], decoded[0])
        assert decoder.factor == 2 and decoded.shape[1:] == decoder.shape((4, 8, 8)) == (3, 16, 16)
        assert decoder.checksum == decoder_checksum(str(folder))
        checksums |= {decoder.checksum, folder_checksum(str(folder))}
    assert len(checksums) == 2 * len(kinds)


FLOWS = {
    "sd3": (pipelines.sd3, {"shift": 3.0}),
    "sd3, dynamic": (pipelines.sd3, {"use_dynamic_shifting": True}),
    "flux": (pipelines.flux, {"use_dynamic_shifting": True}),
    "flux, static": (pipelines.flux, {}),
    "sana": (partial(pipelines.sana, sample_size=16), {"shift": 2.0}),
}


@QUIET
@pytest.mark.parametrize("name", FLOWS)
@torch.no_grad()
def test_flow_matching_is_sampled_as_by_its_stock_pipeline(name, tmp_path):
    make, options = FLOWS[name]
    stock = make(FlowMatchEulerDiscreteScheduler(**options))
    stock.save_pretrained(tmp_path)
    denoiser = DiffusersDenoiser.from_folder(str(tmp_path))
    condition, x = condition_of(denoiser, 1), noise(denoiser, 1)
    seen = dataclasses.replace(condition, scale=torch.tensor([3.5])) if condition.scale is not None else condition
    state, table = State(x, ()), FlowEuler(STEPS).table(denoiser.scheduler_config)
    for step in table:
        state = step.advance(state, denoiser.predict(state.x, step, seen).m, 0.0, torch.zeros_like(x))
    tensors = condition.tensors()
    asked = {"prompt_embeds": tensors["embeddings"], "num_inference_steps": STEPS, "output_type": "latent"}
    match name.partition(",")[0]:
        case "sd3":
            asked |= {"pooled_prompt_embeds": tensors["pooled"], "guidance_scale": 0.0, "latents": x}
        case "flux":
            packed = FluxPipeline._pack_latents(x, *x.shape)
            asked |= {"pooled_prompt_embeds": tensors["pooled"], "guidance_scale": 3.5, "latents": packed}
        case "sana":
            asked |= {"prompt_attention_mask": tensors["mask"], "guidance_scale": 1.0, "latents": x}
            asked |= {"use_resolution_binning": False}
    side = denoiser.shape[1] * stock.vae_scale_factor
    stock.set_progress_bar_config(disable=True)
    expected = stock(height=side, width=side, **asked).images
    if name.startswith("flux"):
        expected = FluxPipeline._unpack_latents(expected, side, side, stock.vae_scale_factor)
    torch.testing.assert_close(state.x, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(
        ValueError, match="that of FlowMatchEulerDiscreteScheduler, of flow matching; set sampler=flow_e"
    ):
        DDIM(STEPS, 0.0, {}).table(denoiser.scheduler_config)
