"""Calibration sets: what all of them hold to, and the law of each."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.data import NDTC, ChosenStates, DensitySet, IntervalSet, UniformDraw, UniformSet
from ptq_diffusion.engine.factory import construct

FILES = sorted((Path(__file__).parents[2] / "conf" / "calibration_set").glob("*.yaml"))
STEPS, IMAGES = 10, 40


def built(path):
    return construct(OmegaConf.load(path))


def features(steps=STEPS, seed=0):
    """Features that drift from step to step, with noise of their own."""
    draw = torch.Generator().manual_seed(seed)
    along = torch.linspace(0, 1, steps)[:, None, None]
    first, last, noise = (torch.randn(size, 6, 4, generator=draw) for size in (1, 1, steps))
    return (1 - along) * first + along * last + 0.1 * noise


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_set_has_its_size_belongs_to_its_seed_and_grows_with_the_images(path, tmp_path):
    rule, again = built(path), built(path)
    states = rule.states(STEPS, IMAGES, 3, features())
    assert states.chosen.shape == (STEPS, IMAGES) and sum(states.counts) == rule.size(STEPS, IMAGES)
    assert again.states(STEPS, IMAGES, 3, features()).digest() == states.digest()
    more = rule.states(STEPS, 2 * IMAGES, 3, features())
    assert torch.equal(more.chosen[:, :IMAGES], states.chosen), "those that were there stay"
    drawn = hasattr(rule, "states_per_image")
    assert (rule.states(STEPS, IMAGES, 4, features()).digest() != states.digest()) == drawn
    if drawn:
        assert set(states.chosen.sum(0).tolist()) == {rule.states_per_image}, "of every image as many"
    states.save(tmp_path / "set.json", 3, list(range(STEPS)))
    assert torch.equal(ChosenStates.load(tmp_path / "set.json").chosen, states.chosen)
    rows = [states.rows(2, slice(first, first + 16)) + first for first in range(0, IMAGES, 16)]
    assert torch.cat(rows).tolist() == states.chosen[2].nonzero().flatten().tolist(), "chunks cover it"


def test_uniform_holds_every_state_and_all_draws_of_all_steps_are_uniform():
    assert UniformSet().states(STEPS, IMAGES, 0).chosen.all()
    assert UniformDraw(STEPS).states(STEPS, IMAGES, 0).chosen.all()
    counts = torch.tensor(UniformDraw(1).states(STEPS, 2000, 0).counts)
    assert (counts - 200).abs().max() < 4 * 200**0.5


def test_ndtc_is_the_clamped_normal_of_its_steps():
    rule, draw = NDTC(1, 0.4, 0.4), torch.Generator().manual_seed(0)
    z = torch.randn(200_000, generator=draw, dtype=torch.float64) * 0.4 + 0.4
    from_end = (STEPS * z).floor().clamp(0, STEPS - 1).long()
    share = torch.bincount(STEPS - 1 - from_end, minlength=STEPS) / len(z)
    weights = rule.weights(STEPS, None)
    assert weights.sum() == pytest.approx(1) and (weights - share).abs().max() < 4 * (0.25 / len(z)) ** 0.5
    assert weights[STEPS // 2 :].sum() > 0.5 > NDTC(1, 0.6, 0.4).weights(STEPS, None)[STEPS // 2 :].sum()
    assert NDTC(1, 0.0, 1e-9).weights(STEPS, None).tolist() == [0.0] * (STEPS - 1) + [1.0], "all at x_0"
    assert NDTC(1, 0.5, 1e9).weights(4, None).tolist() == pytest.approx([0.5, 0, 0, 0.5], abs=1e-6), "both ends"
    counts = rule.states(STEPS, 4000, 0).counts
    assert (torch.tensor(counts) / 4000 - weights).abs().max() < 0.03


def test_intervals_take_every_kth_step_of_the_first_images():
    chosen = IntervalSet(4, 7).states(STEPS, IMAGES, 0).chosen
    assert chosen.nonzero().tolist() == [[step, image] for step in (0, 4, 8) for image in range(7)]
    assert torch.equal(IntervalSet(1, None).states(STEPS, IMAGES, 0).chosen, UniformSet().states(10, 40, 0).chosen)
    assert IntervalSet(STEPS, None).states(STEPS, IMAGES, 0).counts == [IMAGES] + [0] * (STEPS - 1)


def test_density_and_diversity_are_those_of_two_loops():
    some, rule = features(), DensitySet(1, 8, 0.5, 1.2)
    pairs = [(i, j) for i in range(STEPS) for j in range(STEPS) if i != j]
    distance = {(i, j): float((some[i] - some[j]).square().mean()) for i, j in pairs}
    radius = 0.5 * sum(distance.values()) / len(pairs)
    density, diversity = torch.zeros(2, STEPS, dtype=torch.float64)
    for i, j in pairs:
        density[i] += distance[i, j] <= radius
        diversity[i] += float((1 - torch.cosine_similarity(some[i].double(), some[j].double(), dim=-1)).sum())
    scaled = [(values - values.min()) / (values.max() - values.min()) for values in (density, diversity)]
    assert torch.allclose(rule.weights(STEPS, some), scaled[0] + 1.2 * scaled[1], atol=1e-9)


def test_a_crowd_is_denser_and_a_stranger_more_diverse():
    some = features(seed=1)
    some[6:9] = 2 * torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(2))
    some[:6] = some[0] + 0.01 * some[:6]
    some[9] = -some[0]
    crowded = DensitySet(1, 8, 0.2, 0.0).weights(STEPS, some)
    diverse = DensitySet(1, 8, 0.2, 1e6).weights(STEPS, some)
    assert crowded[:6].min() > crowded[6:].max() and diverse.argmax() == 9
    ratios = [DensitySet(1, 8, 0.2, weight).weights(STEPS, some) for weight in (0.5, 1.0, 2.0)]
    strangers = [float(weights[9] / weights.sum()) for weights in ratios]
    assert all(before < after for before, after in pairwise(strangers))
    alike = DensitySet(1, 8, 0.2, 1.0).weights(3, torch.ones(3, 6, 4))
    assert torch.equal(alike, alike[:1].expand(3)) and alike.all(), "steps that are alike count alike"


REFUSED = {
    "an interval beyond the schedule": (
        lambda: IntervalSet(11, None).size(10, 4),
        "at most the 10 steps .*, got 11",
    ),
    "more states of a step than images": (lambda: IntervalSet(2, 5).size(10, 4), "calibration.images, 4, got 5"),
    "no interval": (lambda: IntervalSet(0, None), "at least 1 step and at least 1 state"),
    "no state of a step": (lambda: IntervalSet(1, 0), "at least 1 step and at least 1 state"),
    "no state of an image": (lambda: UniformDraw(0), "at least 1 state of each image, got 0"),
    "more states of an image than steps": (lambda: UniformDraw(5).size(4, 9), "as there are steps, 4, got 5"),
    "a mean beyond the ends": (lambda: NDTC(1, 1.5, 0.4), "a mean from 0 .*, got 1.5"),
    "no deviation": (lambda: NDTC(1, 0.4, 0.0), "a positive deviation, got 0.4 and 0.0"),
    "steps without weight": (lambda: NDTC(2, 0.0, 1e-9).states(9, 4, 0), "at least 2 steps with a weight .* got 1"),
    "no image of features": (lambda: DensitySet(1, 0, 0.5, 1.0), "at least 1 image"),
    "no radius": (lambda: DensitySet(1, 8, 0.0, 1.0), "a positive radius"),
    "a set of no samples": (lambda: ChosenStates(torch.zeros(3, 4, dtype=torch.bool)), "at least one state"),
}


@pytest.mark.parametrize(("ask", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


BROKEN = {
    "another version": (lambda text: text.replace('"version": 1', '"version": 2'), "version 1"),
    "another choice": (lambda text: text.replace('"images": [\n        0,', '"images": [', 1), "make it again"),
    "an image beyond": (lambda text: text.replace('"images": 4', '"images": 2'), "got something else"),
    "no steps": (lambda text: text.replace('"steps"', '"step"'), "got something else"),
    "no JSON": (lambda text: text[:-20], "expected JSON"),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_was_changed_is_refused(spoil, message, tmp_path):
    path = tmp_path / "set.json"
    UniformSet().states(2, 4, 0).save(path, 0, [9.0, 0.0])
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=message):
        ChosenStates.load(path)


def test_a_choice_among_other_states_is_refused():
    ChosenStates.every(3, 2).require(3, 2)
    for chosen in (torch.ones(2, 3, dtype=torch.bool), torch.ones(3, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"of 3 steps and 2 images as bool, got .*mend the calibration_set"):
            ChosenStates(chosen).require(3, 2)
