"""A network of the user's own, the example of its page: from the command to artefacts that another process loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ptq_diffusion as pd
from ptq_diffusion.engine.models import build_model
from ptq_diffusion.engine.plugins import Plugin
from ptq_diffusion.model import GaussianDenoiser
from ptq_diffusion.model.decoder import Pixels
from ptq_diffusion.model.own import WithDecoder, decoder_of
from tests.own_package import NAME, WORDS, forgotten

RELOADED = """
import sys, torch, ptq_diffusion as pd
quantized = pd.load_quantized(sys.argv[1], plugins=["my_package"])
step = pd.load_correction(sys.argv[2]).steps[1]
torch.save((quantized.fingerprint(), quantized.predict(torch.ones(1, 3, 16, 16), step).m), sys.argv[3])
"""


@pytest.fixture
def words(own_package, tiny):
    """Words of the command for the page's network."""
    rest = [word for word in tiny if not word.startswith("model")]
    place = f"hydra.searchpath=[{own_package / 'conf'}]"
    return [place, *WORDS, f"model.path={own_package / 'weights.safetensors'}", *rest, "sampler.steps=2"]


def run(words, *more):
    return pd.run(pd.compose(*words, *more))


def artefacts(words, goal, *more):
    return pd.make(pd.compose(*words, f"goal={goal}", *more))


def test_the_page_holds_from_the_command_to_graphs(words):
    folder = artefacts(words, "onnx", "correction=ptqd", "bitwidth=w4a4", "noise.images=16")
    assert (folder / "onnx.json").is_file()


def test_the_page_holds_from_the_command_to_another_process(words, own_package, tmp_path):
    report = run(words, "correction=rescaled_matched", "bitwidth=w4a4", "noise.images=16")
    assert report.content["provenance"]["plugins"] == [Plugin.of(NAME).identity]
    quantized, corrected = report.rows[1:]
    assert quantized["psnr_to_fp"] < corrected["psnr_to_fp"] and quantized["bops_saving"] > 1
    folders = report.artefacts["quantize"], report.artefacts["fit"]
    with pytest.raises(ValueError, match=r"plugins=\[PACKAGE\]|names a class of"):
        pd.load_quantized(folders[0])
    here, step = pd.load_quantized(folders[0], plugins=[NAME]), pd.load_correction(folders[1]).steps[1]
    environment = os.environ | {"PYTHONPATH": f"{own_package}{os.pathsep}{Path(pd.__file__).parents[1]}"}
    command = [sys.executable, "-c", RELOADED, *map(str, folders), str(tmp_path / "answer.pt")]
    subprocess.run(command, check=True, env=environment)
    fingerprint, m = torch.load(tmp_path / "answer.pt")
    assert fingerprint == here.fingerprint()
    assert torch.equal(m, here.predict(torch.ones(1, 3, 16, 16), step).m)


def test_an_edit_of_the_package_makes_again_what_it_has_a_part_in(words, own_package):
    def signature(*more):
        forgotten()
        return artefacts(words, "trajectories", *more).name

    source = own_package / NAME / "network.py"
    first = signature()
    source.write_text(source.read_text().replace("# ", "## ") + "\n# A comment.\n")
    assert signature() == first
    source.write_text(source.read_text().replace("t / 160", "t / 170"))
    assert signature() != first
    (outputs,) = (word for word in words if word.startswith("outputs="))
    bundled = ["sampler.steps=2", "calibration.images=2", "runtime.progress=false", outputs, "logger=none"]
    cfgs = [pd.compose("goal=trajectories", *bundled, *more) for more in ((), WORDS[2:])]
    assert len({pd.make(cfg) for cfg in cfgs}) == 1, "a package that has no part is in no signature"


def test_a_network_counts_by_its_weights(words, own_package):
    """A copy of the file elsewhere gives another configuration, but other weights in the file another checksum."""
    from ptq_diffusion.engine.models import model_checksum

    cfg, file = pd.compose(*words), own_package / "weights.safetensors"
    before = model_checksum(cfg)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert model_checksum(cfg) != before == build_before(cfg, file, content)


def build_before(cfg, file, content):
    content[-1] ^= 1
    file.write_bytes(content)
    return build_model(dict(cfg.model), [NAME]).fingerprint()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["goal=export", "correction=ptqd"], "expected a model of a pipeline's folder to export"),
        (["condition=prompts", "condition.source.path=FILE"], "condition=none"),
        (["condition=labels"], "condition=none"),
        (["model.width=wide"], "width of MyDenoiser"),
        (["+model.depth=2"], "got depth"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_computed(more, message, words, tmp_path):
    with pytest.raises(ValueError, match=message):
        pd.make(pd.compose(*words, *more))
    assert not list(tmp_path.glob("outputs/store/*/*"))


class Latent(GaussianDenoiser, WithDecoder):
    @property
    def decoder(self):
        return self.brought


def test_a_decoder_comes_along():
    model = Latent((3, 8, 8), 0.0, 1.0)
    model.brought = Pixels()
    assert decoder_of(model) is model.brought
    assert isinstance(decoder_of(GaussianDenoiser((3, 8, 8), 0.0, 1.0)), Pixels)
