"""A training that cannot begin is refused before images are encoded or anything is trained."""

import sys

import pytest
import torch

from ptq_diffusion.command.check.bounds import Room
from ptq_diffusion.command.check.preflight import check
from ptq_diffusion.command.check.training import OWN_OPTIONS
from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.command.python import compose
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.signature import Signatures
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.main import main
from ptq_diffusion.model.loading import load_folder
from ptq_diffusion.stage.training.initialisation import require_weights
from ptq_diffusion.stage.training.latents import EncodeLatents
from tests.experiments import write_parquet

LATENT, PIXELS = "experiment=train_latent_denoiser", "experiment=train_denoiser"
BEGUN = "training.init_from.path="
REFUSED = {
    "no such folder": ([LATENT, "training=cifar10_dit", f"{BEGUN}/nowhere"], "no folder /nowhere"),
    "another network": ([LATENT, "training=cifar10_dit", f"{BEGUN}bundled:cifar10_ldm"], "more weights differ"),
    "a network of other sizes": (
        [LATENT, "training=cifar10_dit", f"{BEGUN}bundled:cifar10_dit", "training.network.transformer.num_layers=5"],
        r"transformer_blocks\.5\..* more weights differ",
    ),
    "pixels": ([LATENT, f"{BEGUN}bundled:cifar10_ddpm"], "got no decoder; give another"),
    "other classes": ([LATENT, f"{BEGUN}bundled:cifar10_ldm"], r"embeddings of 3 classes .* table of \(11, 64\)"),
    "prompts": (
        [LATENT, "data=emoji", "training=emoji_sd", "data.image_column=img", f"{BEGUN}bundled:emoji_sd"]
        + ["data._target_=ptq_diffusion.data.ParquetImages", "~data.caption_column", "~data.without"],
        "training.init_from.path=null",
    ),
    "no labels": ([LATENT, "data.label_column=null"], "set data.label_column, or"),
    "no such column": ([LATENT, "data.label_column=class"], "expected parquet with class in"),
    "a network of pixels of other sizes": ([PIXELS, f"{BEGUN}bundled:fashion_ddpm"], "change training.network"),
    "more classes than a network has": (
        [LATENT, "training=cifar10_dit", "training.network.transformer.num_embeds_ada_norm=2"],
        "^expected at most 2 classes, got 3",
    ),
    "an objective of another process": (
        [PIXELS, "training.objective._target_=ptq_diffusion.stage.training.objective.FlowMatching"]
        + ["~training.objective.gamma", "+training.objective.mean=0.0", "+training.objective.deviation=1.0"]
        + ["+training.objective.uniform_share=0.0"],
        "^expected the scheduler of flow matching",
    ),
    "a prediction of nothing known": (
        [PIXELS, "training.scheduler.prediction_type=foo"],
        "^expected training.scheduler.prediction_type of epsilon, v_prediction, sample, got 'foo'",
    ),
    "an option of another training": (
        [PIXELS, "+training.kl_weight=1.0"],
        "^expected options of train_denoiser, got training.kl_weight, which it does not read; leave it out",
    ),
    "an option of another training of its autoencoder": (
        [LATENT, "+autoencoder.ema_decay=0.5"],
        "^expected options of train_autoencoder, got autoencoder.ema_decay",
    ),
    "options that diffusers refuses": (
        [LATENT, "training.network.unet.block_out_channels=[8]"],
        "^expected training.network of options that fit each other, got an error",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of three classes."""
    folder = tmp_path_factory.mktemp("images")
    write_parquet(folder, "train", torch.zeros(6, 3, 32, 32, dtype=torch.uint8), torch.arange(6) % 3)
    return f"data.folder={folder}"


def checked(*words):
    cfg = compose(*words)
    check(cfg, STAGES[cfg.goal], Workshop(Runtime("cpu", False)), Room.unlimited())


@pytest.mark.parametrize(("words", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_by_the_check_alone(words, message, data):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        checked(*words, data)


def test_every_goal_that_reads_a_training_has_its_options():
    readers = {name for name, stage in STAGES.items() if any(key.split(".")[0] == "training" for key in stage.uses)}
    assert readers == OWN_OPTIONS.keys()


@pytest.mark.parametrize(
    "words",
    [
        [LATENT, "goal=latents"],
        [LATENT, "training=cifar10_dit_flow"],
        [PIXELS, f"{BEGUN}bundled:cifar10_ddpm"],
    ],
)
def test_what_fits_is_taken_without_its_weights_being_read(words, data, monkeypatch):
    monkeypatch.delattr("ptq_diffusion.model.weights.load_file")
    checked(*words, data)


@pytest.mark.parametrize(("count", "words"), [(1, "conv_out.bias differs in"), (2, "and 1 more weight differ in")])
def test_weights_that_differ_are_counted(count, words, tiny_model_folder):
    network = load_folder(str(tiny_model_folder())).network
    require_weights(network, str(tiny_model_folder()))
    for layer in (network.conv_out, network.conv_norm_out)[:count]:
        layer.bias = None
    with pytest.raises(ValueError, match=words):
        require_weights(network, str(tiny_model_folder()))


AUTOENCODERS = ["autoencoder.steps=5", "training@autoencoder=emoji_vae", "+autoencoder.network.dropout=0"]


@pytest.mark.parametrize("word", AUTOENCODERS)
def test_an_autoencoder_beside_that_of_the_saved_model_is_refused(word, data):
    """Named by an option or a group; the file of the experiment may choose one for trainings from nothing."""
    flow = [LATENT, "training=cifar10_dit_flow", data]
    with pytest.raises(ValueError, match=rf"bundled:cifar10_dit, .* got \S*{word.lstrip('+').split('=')[0]}"):
        compose(*flow, word)
    compose(*flow, word, f"{BEGUN}null")


def test_an_autoencoder_beside_that_of_the_saved_model_is_refused_at_the_command_line(data, monkeypatch):
    words = [LATENT, "training=cifar10_dit_flow", data, AUTOENCODERS[0]]
    monkeypatch.setattr(sys, "argv", ["ptq-diffusion", *words])
    with pytest.raises(SystemExit, match="error: expected no options of an autoencoder"):
        main()


def test_latents_are_shared_by_models_that_share_an_autoencoder(data):
    """Of another training the network's own artefact is another all the same."""
    signatures = Signatures(Runtime("cpu", False))
    one, two = (
        compose(LATENT, "training=cifar10_dit_flow", data, f"{BEGUN}bundled:{name}")
        for name in ("cifar10_dit", "cifar10_dit_flow")
    )
    assert signatures.of(EncodeLatents, one) == signatures.of(EncodeLatents, two)
    denoiser = STAGES["train_latent_denoiser"]
    assert signatures.of(denoiser, one) != signatures.of(denoiser, two)
    three = compose(LATENT, "training=cifar10_dit_flow", data, f"{BEGUN}bundled:emoji_sd")
    assert signatures.of(EncodeLatents, one) != signatures.of(EncodeLatents, three)
