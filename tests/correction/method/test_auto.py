"""A correction is chosen only where its samples are certainly closer to the float model's."""

import json
from dataclasses import asdict

import pytest
import torch

from ptq_diffusion.correction import Auto, Choice, NoCorrection
from ptq_diffusion.correction.method.auto import Trial
from ptq_diffusion.metric import DistanceToFloat, Pixels
from ptq_diffusion.quantizer import WHOLE
from tests.correction.presets import CORRECTIONS

JUDGE = DistanceToFloat(Pixels(3, 4), replicates=50, seed=0)


def auto(*names):
    return Auto(dict.fromkeys(names, NoCorrection()), images=64, seed=0, judge=JUDGE)


def shifted(images, by, noise, seed):
    z = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + by + noise * z).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(params=range(3))
def images(request):
    coarse = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(request.param))
    return (60 + 120 * coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)).to(torch.uint8)


def test_the_closest_to_the_float_samples_is_chosen_in_any_order(images):
    variants = {
        "none": shifted(images, 20, 5, seed=1),
        "far": shifted(images, -40, 5, seed=1),
        "near": shifted(images, 2, 5, seed=2),
        "nearer": shifted(images, 0, 0, seed=3),
    }
    for names in (list(variants), list(variants)[::-1]):
        choice = auto(*names).choose(images, {name: variants[name] for name in names})
        assert choice.chosen == "nearer" and choice.chosen in choice.reason
        assert choice.trials["nearer"].distance == pytest.approx(0, abs=1e-6)
        assert choice.trials["far"].difference > 0 > choice.trials["near"].difference
        for trial in choice.trials.values():
            assert trial.standard_error >= 0
            assert trial.difference == pytest.approx(trial.distance - choice.trials["none"].distance)


def test_what_harms_or_is_not_certainly_closer_is_left(images):
    none = shifted(images, 5, 10, seed=1)
    for other in (shifted(images, 15, 10, seed=2), shifted(images, 5, 10, seed=3), none):
        choice = auto("none", "other").choose(images, {"none": none, "other": other})
        assert choice.chosen == "none" and "not certainly closer" in choice.reason


def test_a_candidate_without_an_input_to_act_on_is_named_and_tried(caplog):
    candidates = {name: CORRECTIONS[name] for name in ("none", "rescaled_matched", "rescaled_guided_matched")}
    choice = Auto(candidates, images=64, seed=0, judge=JUDGE)
    choice.check_inputs([WHOLE])
    assert not caplog.records
    choice.check_inputs([])
    (record,) = caplog.records
    assert "of the candidate rescaled_guided_matched: " in record.getMessage()


def test_a_choice_is_read_as_it_was_saved(images, tmp_path):
    variants = {"none": shifted(images, 9, 3, 1), "other": shifted(images, 0, 3, 2)}
    choice = auto("none", "other").choose(images, variants, {"other": "no input"})
    assert Choice.load(tmp_path) is None
    choice.save(tmp_path)
    assert Choice.load(tmp_path) == choice


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": {}},
        {"chosen": "nothing"},
        {"reason": None},
        {"notes": {"none": 1}},
        {"trials": {}},
        {"trials": {"none": {"distance": 1, "difference": 0, "standard_error": float("nan")}}},
        {"trials": {"none": {"distance": 1, "difference": 0, "standard_error": "0"}}},
    ],
)
def test_a_damaged_choice_is_refused(tmp_path, change):
    whole = {"chosen": "none", "reason": "", "trials": {"none": asdict(Trial(1.0, 0.0, 0.0))}}
    for content in (whole, whole | change):
        (tmp_path / "choice.json").write_text(json.dumps(content))
        if content is whole:
            assert Choice.load(tmp_path).chosen == "none"
    with pytest.raises(ValueError, match="expected a choice that Choice.save wrote"):
        Choice.load(tmp_path)


def test_the_more_candidates_the_surer_the_closest_must_be():
    class Told:
        """Differences in standard errors."""

        def __call__(self, full_precision, variants, against):
            return {name: (1.0, -2.2 if name != against else 0.0, 1.0) for name in variants}

        def checksum(self):
            return ""

    image = torch.zeros(2, 1, 1, 1)
    for others, expected in ((1, "0"), (2, "none"), (5, "none")):
        names = ["none", *map(str, range(others))]
        found = Auto(dict.fromkeys(names, NoCorrection()), 2, 0, Told()).choose(image, dict.fromkeys(names, image))
        assert found.chosen == expected


def test_what_is_no_correction_is_no_candidate():
    choice = Auto({"none": NoCorrection(), "other": NoCorrection()}, 2, 0, JUDGE)
    for odd in ("ptqd", choice):
        with pytest.raises(ValueError, match=r"corrections to be fitted, got another in odd.*\+correction@"):
            Auto({"none": NoCorrection(), "odd": odd}, 2, 0, JUDGE)


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["ptqd", "bias"], {}, "'none' and others"),
        (["none"], {}, "'none' and others"),
        (["none", "ptqd"], {"images": 1}, "trial.images of at least 2"),
        (["none", "ptqd"], {"seed": -1}, "seed of at least 0"),
        (["none", "full_precision"], {}, "the float model's"),
    ],
)
def test_a_choice_among_nothing_is_refused(names, options, said):
    with pytest.raises(ValueError, match=said):
        Auto(dict.fromkeys(names, NoCorrection()), **{"images": 2, "seed": 0, "judge": JUDGE} | options)
