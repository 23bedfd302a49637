"""Folders as they are in the wild: each is read as it is meant, or refused in one line."""

import json
import logging
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.decoder import load_decoder
from ptq_diffusion.model.loading import folder_checksum
from ptq_diffusion.sampler import DDPM
from tests.model import pipelines
from tests.model.networks import NETWORKS, condition_of, denoiser_of, random_network, states_of
from tests.steps import at

edit = pipelines.edit
quiet = pytest.mark.filterwarnings("ignore")


def save(folder, name, **options):
    """A folder without model_index.json around a network of `NETWORKS`."""
    network = random_network(name, **options)
    home = "unet" if "unet" in type(network).__name__.lower() else "transformer"
    network.save_pretrained(folder / home)
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


def load(folder):
    denoiser = DiffusersDenoiser.from_folder(str(folder))
    assert len(folder_checksum(str(folder))) == 16
    return denoiser


def answer(denoiser):
    return denoiser.predict(states_of(denoiser), at(321), condition_of(denoiser)).m


def refused(folder, message, loads=(DiffusersDenoiser.from_folder,)):
    for read in loads:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            read(str(folder))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


BOTH = (DiffusersDenoiser.from_folder, folder_checksum)


@quiet
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["stable diffusion", "dit"])
def test_weights_of_other_types_are_computed_with_as_float32(tmp_path, name, dtype):
    folder = save(tmp_path, name)
    (file,) = folder.rglob("*.safetensors")
    save_file({key: weight.to(dtype) for key, weight in load_file(file).items()}, file)
    denoiser = load(folder)
    assert {parameter.dtype for parameter in denoiser.network.parameters()} == {torch.float32}
    torch.testing.assert_close(answer(denoiser), answer(denoiser_of(name)), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_is_read_from_its_folder(tmp_path, name):
    """States of 2, 3, 4, 6 and 16 channels."""
    denoiser = load(save(tmp_path, name))
    assert torch.equal(answer(denoiser), answer(denoiser_of(name)))
    assert denoiser.fingerprint() == denoiser_of(name).fingerprint()


def test_a_name_on_the_hub_is_read_from_its_local_cache(tmp_path, monkeypatch):
    """As from_pretrained leaves it; an incomplete one lacks what it lacks, and a folder of the name comes first."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    refused("someone/dit", "no folder someone/dit, and the hub's local cache has no model .*: hf download someone/dit$")
    root = tmp_path / "hub" / "models--someone--dit"
    snapshot = save(root / "snapshots" / "0123abc", "dit")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123abc")
    assert torch.equal(answer(load("someone/dit")), answer(denoiser_of("dit")))
    assert folder_checksum("someone/dit") == folder_checksum(str(snapshot))
    refused(root, f"got the hub's cache of one, .*; give a folder in its snapshots: {snapshot}$", BOTH)
    shutil.rmtree(snapshot / "scheduler")
    refused("someone/dit", "0123abc lacks scheduler/scheduler_config.json", BOTH)
    save(tmp_path / "someone" / "dit", "sana")
    assert load("someone/dit").family is denoiser_of("sana").family


def test_the_parts_of_a_pipeline_lead_to_all_of_it(tmp_path):
    save(tmp_path, "dit")
    refused(tmp_path / "transformer", f"it is a part of a pipeline, give all of it: {tmp_path}$", BOTH)


def test_a_checkpoint_of_a_training_is_read_by_its_averaged_weights(tmp_path):
    checkpoint = save(tmp_path / "checkpoint-500", "stable diffusion")
    network = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    ema = EMAModel(network.parameters(), model_cls=UNet2DConditionModel, model_config=network.config)
    ema.shadow_params = [1.5 * parameter for parameter in ema.shadow_params]
    ema.save_pretrained(checkpoint / "unet_ema")
    assert "optimization_step" in json.loads((checkpoint / "unet_ema" / "config.json").read_text())
    averaged = load(checkpoint)
    expected = UNet2DConditionModel.from_pretrained(checkpoint / "unet_ema").eval()
    x, condition = states_of(averaged), condition_of(averaged)
    with torch.no_grad():
        stock = expected(x, 321, encoder_hidden_states=condition.embeddings).sample
    assert torch.equal(answer(averaged), stock) and not torch.equal(stock, answer(denoiser_of("stable diffusion")))
    # A checkpoint has no scheduler of its own: that of the pipeline around it counts.
    before = folder_checksum(str(checkpoint))
    (checkpoint / "scheduler").rename(tmp_path / "scheduler")
    assert torch.equal(answer(load(checkpoint)), stock) and folder_checksum(str(checkpoint)) != before
    shutil.rmtree(tmp_path / "scheduler")
    refused(checkpoint, "it is a training's checkpoint, save a scheduler: scheduler.save_pretrained", BOTH)


def test_transformers_of_early_folders_are_what_their_norm_type_says(tmp_path):
    """As in facebook/DiT-XL-2-256, whose network is a Transformer2DModel with options that nobody reads today."""
    for name, folder in (("dit", tmp_path / "dit"), ("pixart", tmp_path / "pixart")):
        save(folder, name)
        config = folder / "transformer" / "config.json"
        early = {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "only_cross_attention": False}
        edit(config, **early, double_self_attention=False, use_linear_projection=False)
        assert torch.equal(answer(load(folder)), answer(denoiser_of(name)))
    edit(config, norm_type="layer_norm")
    refused(folder, "expected a network of UNet2DModel, .*, got Transformer2DModel; other networks")


def test_a_legacy_predict_epsilon_says_what_is_predicted(tmp_path):
    scheduler = save(tmp_path, "pixels") / "scheduler" / "scheduler_config.json"
    content = json.loads(scheduler.read_text())
    del content["prediction_type"]
    for legacy, expected in ((False, "sample"), (True, "epsilon")):
        scheduler.write_text(json.dumps(content | {"predict_epsilon": legacy}))
        config = load(tmp_path).scheduler_config
        assert config["prediction_type"] == expected and "predict_epsilon" not in config
        assert DDPM(2, {}).table(config).prediction == expected
    scheduler.write_text(json.dumps(content | {"predict_epsilon": False, "prediction_type": "epsilon"}))
    refused(tmp_path, "expected one kind of prediction .* predict_epsilon=False and prediction_type=epsilon")


def test_a_variance_that_is_learned_without_a_range_has_to_be_fixed_under_ddpm(tmp_path):
    save(tmp_path, "classes")
    edit(tmp_path / "scheduler" / "scheduler_config.json", variance_type="learned")
    config = load(tmp_path).scheduler_config
    with pytest.raises(ValueError, match=r"got 'learned'; set \+sampler.scheduler.variance_type"):
        DDPM(2, {}).table(config)
    assert DDPM(2, {"variance_type": "fixed_small"}).table(config)


@quiet
def test_components_that_are_not_used_are_named_once(tmp_path, caplog):
    pipelines.ldm().save_pretrained(tmp_path)
    edit(tmp_path / "model_index.json", safety_checker=["x", "Checker"], feature_extractor=["x", "Extractor"])
    with caplog.at_level(logging.INFO):
        load(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert line == f"not used of {tmp_path}: safety_checker, feature_extractor"


@quiet
def test_components_that_are_not_supported_are_refused_by_name(tmp_path):
    pipelines.ldm().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for component, kind in (("controlnet", "ControlNetModel"), ("first_stage", "VQModel"), ("bert", "LDMBertModel")):
        (tmp_path / "model_index.json").write_text(json.dumps(index | {component: ["diffusers", kind]}))
        refused(tmp_path, rf"got LDMPipeline in .* with {component} \({kind}\), not supported", BOTH)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    edit(tmp_path / "vqvae" / "config.json", _class_name="AutoencoderTiny")
    refused(tmp_path, "expected a decoder of AutoencoderKL, VQModel, AutoencoderDC in .*got AutoencoderTiny", BOTH)
    pipelines.vq(4).save_pretrained(tmp_path / "vqvae")
    both = (DiffusersDenoiser.from_folder, load_decoder)
    refused(tmp_path, "a decoder of the 3 channels that the network in .*unet denoises, got one of 4 in .*vqvae", both)
    (tmp_path / "transformer").mkdir()
    refused(tmp_path, "expected one of unet, transformer in .*, got unet and transformer", BOTH)


def test_an_image_beside_the_state_is_refused(tmp_path):
    """Inpainting, upscaling and editing."""
    unet = UNet2DConditionModel(**NETWORKS["stable diffusion"][1] | {"in_channels": 9, "out_channels": 4})
    save(tmp_path, "stable diffusion")
    unet.save_pretrained(tmp_path / "unet")
    refused(tmp_path, "of 9 input and 4 output channels, which is conditioned by an image or a mask beside the state")


def broken_table(**changes):
    def change(folder):
        edit(folder / "class_embedder" / "config.json", **changes)

    return change


def without_weights(folder):
    next((folder / "class_embedder").glob("*.safetensors")).unlink()


def names(labels):
    return lambda folder: edit(folder / "model_index.json", id2label=labels)


CLASSES = {
    "of another class": (
        broken_table(_class_name="Embedding"),
        "expected _class_name ClassEmbedder .* got 'Embedding'",
    ),
    "of no number": (broken_table(classes="3"), "got 'ClassEmbedder' of '3' and 6"),
    "of more classes": (broken_table(classes=4), r"expected finite weight of \(5, 6\) .* got weight \(4, 6\)"),
    "without weights": (without_weights, "expected the class_embedder of the pipeline .* lacks class_embedder/diff"),
    "names with a gap": (names({"0": "cat", "2": "dog"}), "expected id2label of .* to name classes 0, 1, 2 and so on"),
    "names that are a list": (names(["cat"]), "expected id2label of .* to name classes 0, 1, 2 and so on"),
}


@quiet
@pytest.mark.parametrize(("change", "message"), CLASSES.values(), ids=CLASSES)
def test_classes_that_do_not_fit_are_refused(tmp_path, change, message):
    pipelines.classes(tmp_path)
    assert load(tmp_path).classes == 3
    change(tmp_path)
    refused(tmp_path, message)
