"""Latent models are trained, interrupted and loaded by their stock pipelines, at the size of a few pixels."""

import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, StableDiffusionPipeline
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file

from ptq_diffusion.data import CaptionedImages, LabelledImages
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.samples import read_images
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.training.autoencoder_training import AutoencoderTraining
from ptq_diffusion.stage.training.denoiser_training import DenoiserTraining
from ptq_diffusion.stage.training.latents import EncodeLatents, Latents
from ptq_diffusion.stage.training.train_autoencoder import normalize
from ptq_diffusion.stage.training.train_latent_denoiser import TrainLatentDenoiser

CONF = Path(__file__).parents[3] / "conf"
CAPTIONS = ["red fox", "blue whale", "café", "red fox, dark skin tone"]
FEW_STEPS = ["steps=4", "warmup=1", "cooldown=2", "batch_size=4", "precision=32-true", "checkpoint_every=2"]
TINY_UNET = [
    "training.network.unet.sample_size=8",
    "training.network.unet.in_channels=4",
    "training.network.unet.out_channels=4",
    "training.network.unet.block_out_channels=[8,8]",
    "training.network.unet.down_block_types=[DownBlock2D,CrossAttnDownBlock2D]",
    "training.network.unet.up_block_types=[CrossAttnUpBlock2D,UpBlock2D]",
    "training.network.unet.cross_attention_dim=8",
]
TINY_TRANSFORMER = [
    "training.network.transformer.in_channels=4",
    "training.network.transformer.out_channels=4",
    "training.network.transformer.num_layers=1",
    "training.network.transformer.attention_head_dim=4",
]
TINY = {
    "cifar10_ldm": TINY_UNET,
    "cifar10_dit": TINY_TRANSFORMER,
    "cifar10_dit_flow": [*TINY_TRANSFORMER, "training.init_from.path=null"],
    "emoji_sd": [*TINY_UNET, "training.network.layers=1", "training.network.merges=30", "training.network.length=8"],
}
AUTOENCODER = [
    "autoencoder.network.sample_size=16",
    "autoencoder.network.latent_channels=4",
    "autoencoder.network.block_out_channels=[8,8]",
    "autoencoder.network.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
    "autoencoder.network.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images with a class of three, which the file names, and a caption."""
    place, draw = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    cells = []
    for image in torch.randint(256, (12, 16, 16, 3), generator=draw, dtype=torch.uint8):
        encoded = io.BytesIO()
        Image.fromarray(image.numpy()).save(encoded, "png")
        cells.append({"bytes": encoded.getvalue(), "path": None})
    info = {"info": {"features": {"label": {"names": ["plane", "bird", "frog"], "_type": "ClassLabel"}}}}
    columns = {"img": cells, "image": cells, "label": [0, 1, 2] * 4, "caption": CAPTIONS * 3}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)})
    pyarrow.parquet.write_table(table, place / "train-00000-of-00001.parquet")
    return place


def configured(network, folder, *overrides):
    data = ["data=emoji", "training@autoencoder=emoji_vae"] if network == "emoji_sd" else []
    few = [f"{part}.{option}" for part in ("training", "autoencoder") for option in FEW_STEPS]
    words = ["experiment=train_latent_denoiser", *data, f"training={network}", f"data.folder={folder}", *few]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*words, *AUTOENCODER, *TINY[network], *overrides])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """From the name of a network to its folder, trained once."""
    store = Store(tmp_path_factory.mktemp("store"), Workshop(Runtime("cpu", False)))
    return lambda name: store.obtain(TrainLatentDenoiser, configured(name, folder))


def weights(folder):
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


class Killed(BaseException):
    """An interruption that nothing catches."""


@pytest.mark.parametrize("name", TINY)
def test_an_interrupted_training_ends_bit_identical(name, trained, folder, tmp_path, monkeypatch):
    """Both the autoencoder and the denoiser are stopped in their last step and go on from their checkpoint."""
    steps = {module: module.training_step for module in (AutoencoderTraining, DenoiserTraining)}
    seen = []
    whole = trained(name)
    store = Store(tmp_path, Workshop(Runtime("cpu", False)))
    for module, step in steps.items():

        def counted(self, batch, index, step=step):
            seen.append(index)
            return step(self, batch, index)

        def killed(self, batch, index, step=step):
            if len(seen) == 3:
                raise Killed
            return counted(self, batch, index, step)

        monkeypatch.setattr(module, "training_step", killed)
        with pytest.raises((Killed, SystemExit)):
            store.obtain(TrainLatentDenoiser, configured(name, folder))
        seen.clear()
        monkeypatch.setattr(module, "training_step", counted)
        if module is AutoencoderTraining:
            store.obtain(EncodeLatents, configured(name, folder))
            assert len(seen) == 2, "steps 3 and 4"
        seen.clear()
    parts = weights(store.obtain(TrainLatentDenoiser, configured(name, folder)))
    assert len(seen) == 2, "steps 3 and 4"
    assert parts.keys() == weights(whole).keys()
    assert all(tensor.equal(parts[key]) for key, tensor in weights(whole).items())


def test_a_class_token_folder_draws_in_its_stock_pipeline(trained):
    folder = trained("cifar10_ldm")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None, local_files_only=True)
    table = load_file(folder / "class_embedder" / "diffusion_pytorch_model.safetensors")["weight"].float()
    assert json.loads((folder / "class_embedder" / "config.json").read_text())["classes"] == len(table) - 1 == 3
    prompts = {"prompt_embeds": table[[0, 2]][:, None], "negative_prompt_embeds": table[[-1, -1]][:, None]}
    require_images(pipeline, 2, **prompts)


def test_a_transformer_folder_draws_in_its_stock_pipeline(trained):
    pipeline = DiTPipeline.from_pretrained(trained("cifar10_dit"), local_files_only=True)
    assert pipeline.get_label_ids(["plane", "frog"]) == [0, 2]
    require_images(pipeline, 2, class_labels=[0, 2])


def test_a_flow_folder_draws_under_its_sampler(trained, tmp_path):
    """Its stock pipeline knows schedulers of betas alone."""
    store, path = Store(tmp_path, Workshop(Runtime("cpu", False))), trained("cifar10_dit_flow")
    words = ["model=diffusers", f"model.path={path}", "condition=labels", "images=2", "seeds=[0]", "micro_batch=2"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain, guided = (
            compose("config", [*words, "sampler=flow_euler", "sampler.steps=2", f"condition.guidance.scale={scale}"])
            for scale in (1, 1000)
        )
    drawn = [read_images(store.obtain(FullPrecisionSamples, cfg)) for cfg in (plain, guided)]
    assert drawn[0].shape == (2, 3, 16, 16)
    assert (drawn[0] != drawn[1]).any()


@pytest.mark.parametrize(("name", "first"), [("cifar10_ldm", "cifar10_ldm"), ("cifar10_dit_flow", "cifar10_dit")])
def test_a_training_at_rate_zero_saves_the_model_that_it_began_from(name, first, trained, folder, tmp_path):
    store, path = Store(tmp_path, Workshop(Runtime("cpu", False))), trained(first)
    begun = configured(name, folder, f"training.init_from.path={path}", "training.optimizer.lr=0.0")
    saved, expected = weights(store.obtain(TrainLatentDenoiser, begun)), weights(path)
    assert saved.keys() == expected.keys()
    assert all(tensor.equal(saved[key]) for key, tensor in expected.items())
    assert not (tmp_path / "train_autoencoder").exists()


def test_a_prompted_folder_draws_in_its_stock_pipeline(trained):
    folder = trained("emoji_sd")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    require_images(pipeline, 2, prompt=["red fox", "Ünheard of"], negative_prompt=["", "blue"])
    assert (folder / "tokenizer" / "vocab.json").is_file() and (folder / "tokenizer" / "merges.txt").is_file()
    tokenizer = pipeline.tokenizer
    for caption in ("red fox", "café", "ünheard of"):
        ids = tokenizer(caption).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1] and tokenizer.decode(ids, skip_special_tokens=True) == caption
    assert len(tokenizer("red fox").input_ids) < len(tokenizer("zed gox").input_ids), "merges were learnt"


def require_images(pipeline, count, **condition):
    """Images of their size, which depend on the guidance."""
    pipeline.set_progress_bar_config(disable=True)
    drawn = [
        pipeline(
            **condition,
            guidance_scale=scale,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
        for scale in (1.5, 9)
    ]
    assert drawn[0].shape == (count, 16, 16, 3)
    assert (drawn[0] != drawn[1]).any()


def test_scaled_latents_have_mean_zero_and_variance_one(folder, tmp_path):
    store = Store(tmp_path, Workshop(Runtime("cpu", False)))
    latents = Latents.load(store.obtain(EncodeLatents, configured("cifar10_ldm", folder)))
    assert latents.views.shape == (12, 2, 4, 8, 8) and latents.names == ("plane", "bird", "frog")
    plain = latents.views[:, 0].float()
    assert torch.allclose(plain.mean((0, 2, 3)), torch.zeros(4), atol=2e-3)
    assert torch.allclose(plain.var((0, 2, 3)), torch.ones(4), atol=1e-2)


def test_normalized_codes_reconstruct_the_same_images():
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    network = AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=3, **blocks).eval()
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    before = network.encode(images / 127.5 - 1).latent_dist
    drawn = network.decode(before.mean).sample
    normalize(network, LabelledImages(images, None))
    after = network.encode(images / 127.5 - 1).latent_dist
    assert torch.allclose(network.decode(after.mean).sample, drawn, atol=1e-4)
    ratio = (after.mean - after.mean.mean((0, 2, 3), keepdim=True)) / (
        before.mean - before.mean.mean((0, 2, 3), keepdim=True)
    )
    assert torch.allclose(after.std / before.std, ratio.abs(), rtol=1e-2), "noise is scaled as its mean"


def test_labels_are_indices_of_captions_and_some_captions_are_left_out(folder):
    data = CaptionedImages(str(folder), "train", "image", "caption", ["skin tone"]).load()
    assert data.names == ("blue whale", "café", "red fox") and data.labels.tolist() == [2, 0, 1] * 3
    everything = CaptionedImages(str(folder), "train", "image", "caption", []).load()
    kept = [row for row in range(12) if row % 4 != 3]
    assert everything.images[kept].equal(data.images)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"caption_column": "text"}, "set data.caption_column"),
        ({"caption_column": "label"}, "set data.caption_column"),
        ({"caption_column": "caption", "without": ["e", "a"]}, "set without"),
    ],
)
def test_captions_that_are_none_are_refused(folder, options, remedy):
    with pytest.raises(ValueError, match=remedy):
        CaptionedImages(str(folder), "train", "image", **options).load()


@pytest.mark.parametrize(
    ("name", "words", "remedy"),
    [
        ("cifar10_ldm", ["training.network.unet.sample_size=4"], "training@autoencoder"),
        ("cifar10_ldm", ["data.label_column=null"], "data.label_column"),
        ("cifar10_dit", ["training.network.transformer.num_embeds_ada_norm=2"], "num_embeds_ada_norm"),
        ("cifar10_dit", ["autoencoder.network.in_channels=1"], "block_out_channels and in_channels"),
        ("cifar10_dit", ["training.init_from.path=bundled:cifar10_dit"], "another training.init_from.path"),
        ("cifar10_ldm", ["training.init_from.path=bundled:cifar10_ddpm"], "got no decoder; give another"),
        ("emoji_sd", ["training.init_from.path=bundled:emoji_sd"], "training.init_from.path=null"),
    ],
)
def test_what_does_not_fit_is_refused(name, words, remedy, folder, tmp_path):
    store = Store(tmp_path, Workshop(Runtime("cpu", False)))
    with pytest.raises(ValueError, match=remedy):
        store.obtain(TrainLatentDenoiser, configured(name, folder, *words))
