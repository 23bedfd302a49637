"""Folders of whole pipelines with tiny networks of random weights, as stock diffusers saves them."""

import json

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    FluxPipeline,
    LDMPipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    VQModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.model.networks import random_network

VAE = {
    "block_out_channels": (4, 4),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def vae(channels=4, **options):
    return seeded(lambda: AutoencoderKL(**VAE, latent_channels=channels, **options))


def scheduler():
    return DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)


def tokenizer(folder):
    """CLIP's, of letters alone."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def text_encoder(kind=CLIPTextModel, width=6, **options):
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=8,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        **options,
    )
    return seeded(lambda: kind(config))


def stable_diffusion(folder, text=True):
    """With CLIP, or without any text encoder."""
    encoder, words = (text_encoder(), tokenizer(folder / "words")) if text else (None, None)
    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    unet = random_network("stable diffusion")
    return StableDiffusionPipeline(vae(), encoder, words, unet, scheduler(), **unused)


def sdxl(folder):
    words = tokenizer(folder / "words")
    encoders = text_encoder(width=2), text_encoder(CLIPTextModelWithProjection, 4, projection_dim=5)
    return StableDiffusionXLPipeline(vae(), *encoders, words, words, random_network("sdxl"), scheduler())


def classes(folder):
    """LDM of classes: a Stable Diffusion folder without text, and the embeddings of 3 classes and of none."""
    stable_diffusion(folder, text=False).save_pretrained(folder)
    edit(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    home = folder / "class_embedder"
    home.mkdir()
    (home / "config.json").write_text(json.dumps({"_class_name": "ClassEmbedder", "classes": 3, "dim": 6}))
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    save_file({"weight": weight}, home / "diffusion_pytorch_model.safetensors")
    return weight


def dit(folder):
    """With 1000 classes, as the pipeline's "no class" is number 1000, of which 10 are named."""
    DiTPipeline(random_network("dit", num_embeds_ada_norm=1000), vae(), scheduler()).save_pretrained(folder)
    edit(folder / "model_index.json", id2label={str(label): f"class {label}" for label in range(10)})


def vq(channels=3):
    return seeded(lambda: VQModel(**VAE, latent_channels=channels, num_vq_embeddings=16, scaling_factor=0.5))


def ldm():
    return LDMPipeline(vq(), random_network("pixels"), scheduler())


def dc():
    options = {"block_out_channels": (4, 8), "layers_per_block": (1, 1), "qkv_multiscales": ((), (5,))}
    both = {f"{end}_{name}": value for end in ("encoder", "decoder") for name, value in options.items()}
    return seeded(lambda: AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.4, **both))


def sana(scheduler, **options):
    network = random_network("sana", in_channels=4, out_channels=4, **options)
    return SanaPipeline(None, None, dc(), network, scheduler)


def sd3(scheduler):
    """Without text encoders; its states are 16 channels of 8x8."""
    nothing = (None,) * 6
    return StableDiffusion3Pipeline(random_network("sd3"), scheduler, vae(16), *nothing)


def flux(scheduler):
    """Without text encoders; its states are 2 channels of 128x128."""
    return FluxPipeline(scheduler, vae(2), None, None, None, None, random_network("flux"))
