"""Broken models, references and data get one clear message, and nothing that was computed is lost."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.job import assert_clear


def weights(place):
    return place.model / "unet" / "diffusion_pytorch_model.safetensors"


def changed_weights(change):
    def prepare(place):
        tensors = load_file(weights(place))
        change(tensors)
        save_file(tensors, weights(place), {"format": "pt"})
        return [f"model.path={place.model}"]

    return prepare


def changed_json(name, **changes):
    def prepare(place):
        path = place.model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return [f"model.path={place.model}"]

    return prepare


def without(name, *, instead=None):
    def prepare(place):
        (place.model / name).unlink()
        if instead:
            (place.model / instead).write_bytes(b"pickled")
        return [f"model.path={place.model}"]

    return prepare


def overwritten(name, content):
    def prepare(place):
        (place.model / name).write_bytes(content)
        return [f"model.path={place.model}"]

    return prepare


def truncated_weights(place):
    weights(place).write_bytes(weights(place).read_bytes()[:-100])
    return [f"model.path={place.model}"]


UNET, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"
FILE = "unet/diffusion_pytorch_model.safetensors"
MODELS = {
    "no configuration": (without(UNET), "lacks unet/config.json"),
    "no scheduler": (without(SCHEDULER), "lacks scheduler/scheduler_config.json"),
    "no weights": (without(FILE), r"lacks unet/\w+\.safetensors"),
    "pickled weights only": (without(FILE, instead="unet/diffusion_pytorch_model.bin"), "safe_serialization=True"),
    "truncated weights": (truncated_weights, "broken"),
    "weights that are text": (overwritten(FILE, b"version https://git-lfs"), "broken"),
    "a configuration that is no JSON": (overwritten(UNET, b"{"), "expected JSON"),
    "a configuration that is a list": (overwritten(SCHEDULER, b"[]"), "JSON object"),
    "another network": (changed_json(UNET, _class_name="UNet1DModel"), "UNet2DModel"),
    "a layer of another shape": (changed_json(UNET, block_out_channels=[8, 24]), "do not belong together"),
    "a layer less": (changed_json(UNET, layers_per_block=2), "counterpart|do not belong"),
    "a weight less": (changed_weights(lambda tensors: tensors.pop("conv_in.weight")), "conv_in.weight"),
    "a network that cannot be built": (changed_json(UNET, down_block_types=["Odd", "Odd"]), "do not belong together"),
    "NaN in a weight": (changed_weights(lambda t: t["conv_in.weight"].fill_(torch.nan)), "NaN or infinity in conv_in"),
    "class labels": (changed_json(UNET, num_class_embeds=10), "class_embedding|condition=labels"),
    "no size": (changed_json(UNET, sample_size=None), "sample_size"),
    "a scheduler without betas": (overwritten(SCHEDULER, b'{"_class_name": "Flow"}'), "beta_schedule"),
    "an index of a class that is no name": (
        changed_json(INDEX, unet=["diffusers", [3]]),
        "unet of .* to be a library and",
    ),
    "an index of half a class": (
        changed_json(INDEX, scheduler=["DDPMScheduler"]),
        "scheduler of .* to be a library and",
    ),
    "an index of no pipeline": (changed_json(INDEX, _class_name={}), "name of a pipeline as _class_name"),
    "dynamic thresholding": (changed_json(SCHEDULER, thresholding=True), "thresholding"),
}


@pytest.mark.parametrize(("prepare", "remedy"), MODELS.values(), ids=MODELS)
def test_a_model_that_is_broken(prepare, remedy, refused):
    assert_clear(refused([], prepare), remedy)


def pictures(*sizes, mode="RGB"):
    def prepare(place):
        folder = place.scratch / "pictures"
        folder.mkdir()
        for i, size in enumerate(sizes):
            Image.new(mode, size, 3).save(folder / f"{i}.png")
        return [f"reference.path={folder}"]

    return prepare


def a_picture_of_text(place):
    words = pictures((8, 8), (8, 8))(place)
    (place.scratch / "pictures" / "1.png").write_text("none")
    return words


def a_picture_cut_off(place):
    words = pictures((64, 64), (64, 64), (64, 64))(place)
    path = place.scratch / "pictures" / "2.png"
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noisy).save(path)
    path.write_bytes(path.read_bytes()[:6000])
    return words


def a_truncated_reference(place):
    path = place.scratch / "reference.safetensors"
    path.write_bytes(b"half")
    return [f"reference.path={path}"]


REFERENCES = {
    "an empty folder": ("reference=folder", pictures(), "found none"),
    "one image": ("reference=folder", pictures((8, 8)), "at least judging.neighbours"),
    "two sizes": ("reference=folder", pictures((8, 8), (9, 8)), "resize"),
    "images too small": ("reference=folder", pictures((4, 4), (4, 4), (4, 4)), "H >= 8"),
    "grey images for an extractor of five channels": (
        "reference=folder feature=pixels feature.extractor.channels=5",
        pictures((8, 8), (8, 8), (8, 8), mode="L"),
        "channels",
    ),
    "transparent images": ("reference=folder", pictures((8, 8), (8, 8), (8, 8), mode="RGBA"), "opaque"),
    "an image that is cut off": ("reference=folder", a_picture_cut_off, r"2\.png"),
    "a text called an image": ("reference=folder", a_picture_of_text, "remove it"),
    "truncated statistics": ("reference=statistics", a_truncated_reference, "goal=reference_statistics"),
}


@pytest.mark.parametrize(("words", "prepare", "remedy"), REFERENCES.values(), ids=REFERENCES)
def test_a_reference_that_is_broken(words, prepare, remedy, refused):
    assert_clear(refused(words.split(" "), prepare), remedy)


def fewer_columns(place):
    return ["data.image_column=label"]


def broken_shard(place):
    for path in (place.scratch / "images").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:200])
    return []


DENOISER, CLASSIFIER = "experiment=train_denoiser", "experiment=train_feature_network"
SMALL = "training.network.sample_size=16"
DATA = {
    "a broken shard": (DENOISER, broken_shard, "fetch the file again"),
    "no such column": (f"{DENOISER} data.image_column=image", None, "data.image_column"),
    "a column of no images": (DENOISER, fewer_columns, "structs that hold bytes"),
    "images of another size": (DENOISER, None, "sample_size"),
    "fewer images than a batch": (f"{DENOISER} {SMALL} training.batch_size=64", None, "lower batch_size"),
    "no labels": (f"{CLASSIFIER} data.label_column=null", None, "set a label column"),
    "more labels than classes": (f"{CLASSIFIER} training.network.num_classes=1", None, "num_classes"),
    "no steps of a training": (f"{DENOISER} training.steps=0", None, "training.steps"),
    "a warm-up that is a word": (f"{DENOISER} training.warmup=long", None, "training.warmup"),
    "an optimizer of another library": (f"{DENOISER} training.optimizer._target_=os.system", None, "_target_"),
}


@pytest.mark.parametrize(("words", "prepare", "remedy"), DATA.values(), ids=DATA)
def test_data_that_cannot_be_trained_on(words, prepare, remedy, refused, images_folder):
    shown = refused([*words.split(" "), f"data.folder={images_folder}"], prepare or (lambda place: []))
    assert_clear(shown, remedy)
