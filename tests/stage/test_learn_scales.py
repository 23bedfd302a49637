"""Learned scales of activations from the command line: what changes, and how an interrupted run goes on."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.network import load_quantized
from ptq_diffusion.rounding import ScaleReconstruction
from ptq_diffusion.rounding.artefact import OWNER, SCALES, load_scales

BASE = ["sampler.steps=2", "calibration.images=2", "bitwidth=w4a4"]
BASE += [f"range_search@quantizer.{operand}.range_search=min_max" for operand in ("weight", "activation")]
BASE += ["step_groups@quantizer.steps=equal", "quantizer.steps.count=2"]
QUICK = [*BASE, "activation_scales=lsq", "activation_scales.learning_rate=0.05"]
QUICK += [f"activation_scales.{key}={value}" for key, value in (("iterations", 2), ("calls", 1), ("rows", 2))]


class Killed(BaseException):
    """An interruption that no code catches."""


def test_scales_alone_change_and_an_interrupted_run_goes_on_at_the_next_part_with_the_same(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    searched = make("goal=quantize", *BASE)
    assert not (tmp_path / "outputs" / "store" / "activation_scales").exists(), "searched ones need no stage"
    learned, whole, done = make("goal=quantize", *QUICK), make("goal=activation_scales", *QUICK), []
    assert {path.name for path in whole.iterdir()} == {SCALES, OWNER, "config.yaml", "files.json"}
    before, after = (load_file(path / "quantized.safetensors") for path in (searched, learned))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["settings/scale"]
    settings, scales = load_quantized(learned).settings, load_file(whole / SCALES)
    assert scales and all(torch.equal(scale, settings[name].scale) for name, scale in scales.items())
    one = ScaleReconstruction.learned

    def watched(self, part):
        if len(done) == 3:
            done.append("killed")
            raise Killed
        done.append(part)
        return one(self, part)

    monkeypatch.setattr(ScaleReconstruction, "learned", watched)
    with pytest.raises(Killed):
        make("goal=activation_scales", *QUICK, "outputs=killed")
    resumed = make("goal=activation_scales", *QUICK, "outputs=killed")
    assert len(done) == len(set(done)) > 6, "no part is learned twice"
    again = load_file(resumed / SCALES)
    assert again.keys() == scales.keys() and all(torch.equal(again[name], scales[name]) for name in scales)
    require_owned(resumed, settings)


def require_owned(folder, settings):
    """That scales of another network, plan or operand are refused."""
    owner = json.loads((folder / OWNER).read_text())
    for part in ("network", "plan"):
        (folder / OWNER).write_text(json.dumps(owner | {part: "other"}))
        with pytest.raises(
            ValueError, match=rf"expected scales of this {part} \({owner[part]}\) in .*; make them again"
        ):
            load_scales(folder, settings, owner["network"], owner["plan"])
    (folder / OWNER).write_text(json.dumps(owner))
    for scales, message in ({"elsewhere": torch.ones(2)}, "only one of both has"), ({"x": -torch.ones(2)}, "positive"):
        save_file(scales, folder / SCALES)
        with pytest.raises(ValueError, match=rf"{message} .* learn again"):
            load_scales(folder, settings, owner["network"], owner["plan"])
