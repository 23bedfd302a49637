"""Roundings from the command line: what the network is quantized with, and how an interrupted one goes on."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.network import load_quantized
from ptq_diffusion.rounding import Reconstruction
from ptq_diffusion.rounding.artefact import INTEGERS, OWNER, load_integers

LEARNED = ["gptq"]
QUICK = ["sampler.steps=2", "calibration.images=3"]


class Killed(BaseException):
    """An interruption that no code catches."""


def integers_of(folder):
    network = load_quantized(folder)
    return {name: [weight._centred() for weight in layer.weights] for name, layer in network.layers().items()}


def differing(first, second):
    """The names of the weights whose integers differ."""
    return [name for name in first if not all(map(torch.equal, first[name], second[name]))]


@pytest.mark.parametrize("rounding", LEARNED)
def test_the_quantized_network_has_the_integers_of_the_rounding_on_the_grids_of_nearest(make, tmp_path, rounding):
    nearest = make("goal=quantize", *QUICK)
    assert not (tmp_path / "outputs" / "store" / "reconstruct").exists(), "nearest needs no stage"
    rounded = make("goal=quantize", f"rounding={rounding}", *QUICK)
    (folder,) = (path for path in (tmp_path / "outputs/store/reconstruct").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {INTEGERS, OWNER, "config.yaml", "files.json"}
    before, after = (load_file(path / "quantized.safetensors") for path in (nearest, rounded))
    assert before.keys() == after.keys()
    odd = [name for name in before if not torch.equal(before[name], after[name])]
    assert odd and all(name.endswith("/packed") for name in odd), "scales, biases and settings stay"
    changed, layers = differing(integers_of(nearest), integers_of(rounded)), load_quantized(rounded).layers()
    assert len(changed) > len(layers) / 2 and {"conv_in", "conv_out"} <= layers.keys()


@pytest.mark.parametrize("rounding", LEARNED)
def test_a_rounding_that_is_killed_goes_on_at_the_next_part_with_the_same_integers(
    make, tmp_path, monkeypatch, rounding
):
    words = ["goal=reconstruct", f"rounding={rounding}", "rounding.inputs.path=quantized", *QUICK]
    whole = load_file(make(*words) / INTEGERS)
    monkeypatch.chdir(tmp_path)
    rounded, done = Reconstruction.rounded, []

    def dies_at_the_fourth(self, part):
        if len(done) == 3:
            raise Killed
        done.append(part)
        return rounded(self, part)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Reconstruction, "rounded", dies_at_the_fourth)
        make(*words, "outputs=killed")
    with monkeypatch.context() as patch:
        patch.setattr(Reconstruction, "rounded", lambda self, part: done.append(part) or rounded(self, part))
        resumed = load_file(make(*words, "outputs=killed") / INTEGERS)
    assert len(done) == len(set(done)) > 6, "no part is rounded twice"
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("part", ["network", "plan"])
def test_integers_of_another_network_or_plan_are_refused(make, part):
    folder = make("goal=reconstruct", "rounding=gptq", *QUICK)
    owner = json.loads((folder / OWNER).read_text())
    (folder / OWNER).write_text(json.dumps(owner | {part: "other"}))
    with pytest.raises(ValueError, match=rf"expected integers of this {part} \({owner[part]}\) in .*; round again"):
        load_integers(folder, owner["network"], owner["plan"])


def test_a_part_of_another_network_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["goal=reconstruct", "rounding=gptq", "rounding.inputs.path=quantized", *QUICK, "outputs=killed"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Reconstruction, "install", lambda self, integers: (_ for _ in ()).throw(Killed))
        make(*words)
    (file,) = tmp_path.glob("killed/store/reconstruct/*.partial/parts/0000.safetensors")
    save_file({"elsewhere/4": torch.zeros(2, 3, dtype=torch.int16)}, file)
    with pytest.raises(ValueError, match=r"only one of both has elsewhere at 4 bits .* remove the file"):
        make(*words)
