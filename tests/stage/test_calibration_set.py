"""Calibration sets from the command line: what is observed and rounded on, and what belongs to which artefact."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ptq_diffusion.model import Condition, DiffusersDenoiser, Guided
from ptq_diffusion.rounding.artefact import INTEGERS
from ptq_diffusion.stage.calibration.bottleneck import narrowest_block, step_features
from tests.model.networks import NETWORKS, condition_of, denoiser_of, states_of
from tests.steps import at

SMALL = ["sampler.steps=3", "calibration.images=6"]
SETS = {
    "ndtc": [],
    "uniform_draw": ["calibration_set.states_per_image=2"],
    "intervals": ["calibration_set.every=2"],
    "density": ["calibration_set.images=3"],
}


def folders(tmp_path, stage):
    return {path.name for path in (tmp_path / "outputs" / "store" / stage).iterdir() if path.is_dir()}


def test_ranges_are_those_of_the_states_that_a_set_holds_and_trajectories_are_shared(make, tmp_path):
    for name, options in {"uniform": [], **SETS}.items():
        words = [*SMALL, f"calibration_set={name}", *options]
        content = json.loads((make("goal=calibration_set", *words) / "set.json").read_text())
        extremes = load_file(make("goal=calibrate", *words) / "inputs.safetensors")["conv_in/0/extremes"]
        (chunks,) = (tmp_path / "outputs/store/trajectories").glob("*/chunks")
        # The first layer sees the states themselves.
        states = torch.cat([load_file(file)["states"] for file in sorted(chunks.iterdir())], dim=1)
        held = torch.cat([states[i, step["images"]] for i, step in enumerate(content["steps"])])
        assert extremes.flatten().tolist() == [float(held.min()), float(held.max())], name
        assert (len(held) == states[:, :, 0, 0, 0].numel()) == (name == "uniform")
        times = [step["t"] for step in content["steps"]]
        assert content["seed"] == 1000 and times == sorted(times, reverse=True)
    assert len(folders(tmp_path, "trajectories")) == 1 and len(folders(tmp_path, "calibrate")) == 1 + len(SETS)


def test_rounding_reads_the_set_and_the_same_set_by_another_name_gives_the_same_numbers(make):
    words = [*SMALL, "goal=reconstruct", "rounding=gptq", "rounding.inputs.positions=2"]
    uniform = load_file(make(*words) / INTEGERS)
    all_drawn = load_file(make(*words, "calibration_set=intervals", "calibration_set.every=1") / INTEGERS)
    assert all(torch.equal(uniform[name], all_drawn[name]) for name in uniform)
    # Weights of steps are measured along whole trajectories, of which this set lacks two steps in three.
    effect = "rounding.inputs.weights._target_=ptq_diffusion.rounding.EffectOnImage"
    few = load_file(make(*words, effect, "calibration_set=intervals", "calibration_set.every=3") / INTEGERS)
    assert any(not torch.equal(uniform[name], few[name]) for name in uniform)


@pytest.mark.parametrize("goal", ["quantize", "calibrate"])
def test_sets_that_do_not_fit_are_refused_before_anything_is_made(make, tmp_path, monkeypatch, goal):
    for words, message in (
        (["calibration_set=intervals", "calibration_set.every=4"], "at most the 3 steps"),
        (["calibration_set=ndtc", "calibration_set.states_per_image=4"], "states_per_image"),
        (
            ["calibration_set=intervals", "calibration_set.every=2", "step_groups@quantizer.steps=time"],
            "none of that of step 1, at which time_embedding",
        ),
        (["step_groups@quantizer.steps=equal", "quantizer.steps.count=9"], "lower quantizer.steps.count"),
        (["step_groups@quantizer.steps=given", "quantizer.steps.starts=[0,9]"], "one that begins at step 9"),
        (["calibration_set._target_=ptq_diffusion.data.Labels"], "expected calibration_set to be a CalibrationSet"),
    ):
        with pytest.raises(ValueError, match=message):
            make(*SMALL, f"goal={goal}", *words)
    monkeypatch.setattr(DiffusersDenoiser, "blocks", lambda _: ())
    with pytest.raises(ValueError, match="expected a network with blocks, whose features density reads"):
        make(*SMALL, f"goal={goal}", "calibration_set=density")
    assert not (tmp_path / "outputs" / "store").exists()


def test_a_set_that_reads_features_is_refused_where_it_leaves_a_range_without_states(make):
    words = ["calibration_set=density", "calibration_set.diversity=0", "step_groups@quantizer.steps=time"]
    with pytest.raises(ValueError, match="expected a calibration set with states of every group of steps"):
        make("goal=calibrate", "sampler.steps=3", "calibration.images=1", *words)


STEPS = (at(900, 0), at(20, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_features_of_every_family_are_the_narrowest_blocks_of_the_first_images(name):
    denoiser = denoiser_of(name)
    condition, x_t = condition_of(denoiser), states_of(denoiser)
    batches = [(i, x_t * (i + 1), condition) for i in (0, 1)]
    features = step_features(denoiser, STEPS, [*batches, (0, x_t * 9, condition)], images=1)
    assert features.shape[0] == 2 and not torch.equal(features[0], features[1])
    both = step_features(denoiser, STEPS, batches, images=2)
    assert both.numel() == 2 * features.numel() and torch.allclose(both[:, : features.shape[1]], features, atol=1e-5)
    block = narrowest_block(denoiser, STEPS, x_t, condition)
    has_middle = any(name.startswith("mid_block") for name in denoiser.blocks())
    assert block in denoiser.blocks() and block.startswith("mid_block") == has_middle


def test_as_many_images_are_read_as_are_asked_for_whatever_the_batches_are():
    denoiser = denoiser_of("classes")
    condition, x_t = condition_of(denoiser, 4), states_of(denoiser, 4)

    def features(size, images):
        parts = [slice(first, first + size) for first in range(0, 4, size)]
        batches = [(i, x_t[part] * (i + 1), condition.rows(part)) for part in parts for i in (0, 1)]
        return step_features(denoiser, STEPS, batches, images)

    for images in (1, 3, 4):
        whole = features(4, images)
        assert all(torch.allclose(features(size, images), whole, atol=1e-5) for size in (1, 2))
    assert features(2, 3).shape == (2, 3 * features(2, 1).shape[1], whole.shape[2])
    assert torch.equal(features(2, 9), features(2, 4))


def test_guidance_leaves_the_features_that_the_condition_leads_to_as_they_are():
    """A guided network asks for null and condition at some steps, and for the condition alone at the others."""
    denoiser = denoiser_of("classes")
    condition, x_t = condition_of(denoiser), states_of(denoiser)
    guided = Guided(denoiser, Condition(labels=torch.tensor([0])), 3.0, (0.5, 1.0))
    assert [guided.rows_per_image(step) for step in STEPS] == [2, 1]
    plain, with_null = (
        step_features(network, STEPS, [(i, x_t, condition) for i in (0, 1)], 2) for network in (denoiser, guided)
    )
    assert torch.allclose(plain, with_null, atol=1e-5)
