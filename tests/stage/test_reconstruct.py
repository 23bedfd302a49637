"""Roundings from the command line: what the network is quantized with, and how an interrupted one goes on."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.network import QuantizedWeight, load_quantized
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel, State
from ptq_diffusion.rounding import BlockReconstruction, LayerReconstruction
from ptq_diffusion.rounding.artefact import INTEGERS, OWNER, load_integers
from ptq_diffusion.rounding.parts import Part, dealt

QUICK = ["sampler.steps=2", "calibration.images=3"]
LEARNED = {
    "gptq": ["rounding=gptq", "rounding.inputs.path=quantized", "rounding.inputs.target=output"],
    "adaround": ["rounding=adaround", "rounding.inputs.path=quantized", "rounding.descent.iterations=3"],
    "brecq": ["rounding=brecq", "rounding.descent.iterations=2", "rounding.calls=1", "rounding.rows=2"],
}


class Killed(BaseException):
    """An interruption that no code catches."""


def grid_of(weight):
    """The frozen quantizer of a stored weight."""
    quantizer = AffineQuantizer(weight.bits, weight.symmetric, granularity=PerChannel(), range_search=MinMax(), bins=64)
    quantizer.scale, quantizer.zero_point, quantizer.state = weight.scale, weight.zero_point, State.FROZEN
    return quantizer


@pytest.fixture
def beginning(outputs):
    """From a folder of outputs to copies there of what the tests of this module share, but for what they make."""

    def begin(folder):
        if outputs.exists():
            shutil.copytree(outputs, folder, ignore=shutil.ignore_patterns("reconstruct", "quantize"))

    return begin


def test_the_quantized_network_has_the_integers_of_the_rounding_on_the_grids_of_nearest(make, beginning, tmp_path):
    beginning(tmp_path / "outputs")
    nearest = make("goal=quantize", *QUICK)
    assert not (tmp_path / "outputs" / "store" / "reconstruct").exists(), "nearest needs no stage"
    rounded = make("goal=quantize", "rounding=gptq", *QUICK)
    (folder,) = (path for path in (tmp_path / "outputs/store/reconstruct").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {INTEGERS, OWNER, "config.yaml", "files.json"}
    before, after = (load_file(path / "quantized.safetensors") for path in (nearest, rounded))
    assert before.keys() == after.keys()
    odd = [name for name in before if not torch.equal(before[name], after[name])]
    assert odd and all(name.endswith("/packed") for name in odd), "scales, biases and settings stay"
    layers = load_quantized(rounded).layers()
    assert len(odd) > len(layers) / 2
    for name, bits in ((name, weight.bits) for name, layer in layers.items() for weight in layer.weights):
        integers = load_file(folder / INTEGERS)[f"{name}/{bits}"]
        (weight,) = layers[name].weights
        assert torch.equal(QuantizedWeight.of_integers(integers, grid_of(weight)).packed, weight.packed)


@pytest.mark.parametrize("words", LEARNED.values(), ids=LEARNED)
def test_a_rounding_that_is_killed_goes_on_at_the_next_part_with_the_same_integers(
    make, outputs, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    words, done = ["goal=reconstruct", *words, *QUICK], []
    whole = load_file(make(*words, f"outputs={outputs}") / INTEGERS)
    shutil.copytree(outputs, "killed", ignore=shutil.ignore_patterns("reconstruct"))
    kind = BlockReconstruction if "rounding=brecq" in words else LayerReconstruction
    rounded = kind.rounded

    def watched(self, part):
        if len(done) == 3:
            done.append("killed")
            raise Killed
        done.append(part)
        return rounded(self, part)

    monkeypatch.setattr(kind, "rounded", watched)
    with pytest.raises(Killed):
        make(*words, "outputs=killed")
    resumed = make(*words, "outputs=killed")
    assert len(done) == len(set(done)) > 6, "no part is rounded twice"
    assert {path.name for path in resumed.iterdir()} == {INTEGERS, OWNER, "config.yaml", "files.json"}
    integers = load_file(resumed / INTEGERS)
    assert integers.keys() == whole.keys() and all(torch.equal(integers[name], whole[name]) for name in whole)


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize(("name", "path", "devices"), [("gptq", "float", 2), ("adaround", "quantized", 3)])
def test_devices_that_deal_out_layers_leave_the_bytes_of_one(make, outputs, name, path, devices):
    """All layers at once along the float path; one block after the other, some of one layer, along the quantized."""
    words = ["goal=reconstruct", *LEARNED[name], f"rounding.inputs.path={path}", *QUICK, f"outputs={outputs}"]
    folder = make(*words, "force=reconstruct")
    one = {name: (folder / name).read_bytes() for name in (INTEGERS, OWNER)}
    make(*words, f"runtime.devices={devices}", "force=reconstruct")
    assert {name: (folder / name).read_bytes() for name in one} == one
    assert {file.name for file in folder.iterdir()} == {INTEGERS, OWNER, "config.yaml", "files.json"}


def test_every_layer_of_a_part_is_in_one_share_and_shares_are_of_sizes_alike():
    sizes = {"a": 5, "b": 1, "c": 3, "d": 4, "e": 2}
    part = Part("a", tuple(sizes))
    assert dealt(part, sizes.__getitem__, 1) == [part]
    assert dealt(part, sizes.__getitem__, 2) == [Part("a", ("a", "b", "e")), Part("a", ("c", "d"))]
    assert sorted(share.layers for share in dealt(part, sizes.__getitem__, 9)) == [(name,) for name in sizes]


def test_integers_of_another_network_or_plan_are_refused(make, outputs, tmp_path):
    made = make("goal=reconstruct", "rounding=gptq", *QUICK, f"outputs={outputs}")
    folder = shutil.copytree(made, tmp_path / "integers")
    owner = json.loads((folder / OWNER).read_text())
    for part in ("network", "plan"):
        (folder / OWNER).write_text(json.dumps(owner | {part: "other"}))
        with pytest.raises(
            ValueError, match=rf"expected integers of this {part} \({owner[part]}\) in .*; make them again"
        ):
            load_integers(folder, owner["network"], owner["plan"])


def test_a_part_of_another_network_is_refused(make, beginning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beginning(tmp_path / "killed")
    words = ["goal=reconstruct", "rounding=gptq", "rounding.inputs.path=quantized", *QUICK, "outputs=killed"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(LayerReconstruction, "install", lambda self, integers: (_ for _ in ()).throw(Killed))
        make(*words)
    (file,) = tmp_path.glob("killed/store/reconstruct/*.partial/parts/0000.safetensors")
    save_file({"elsewhere/4": torch.zeros(2, 3, dtype=torch.int16)}, file)
    with pytest.raises(ValueError, match=r"only one of both has elsewhere at 4 bits .* remove the file"):
        make(*words)
