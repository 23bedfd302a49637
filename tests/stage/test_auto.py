"""correction=auto from the command line: candidates are shared with other runs, and the choice is all that is used."""

import json
import shutil

import pytest

from ptq_diffusion.metric import DistanceToFloat
from ptq_diffusion.stage.drawing.images import DrawImages

AUTO = [
    "correction=auto",
    "trial.images=5",
    "correction.judge.replicates=5",
    "~correction.candidates.readout_matched",
    "~correction.candidates.rescaled_readout_matched",
    "~correction.candidates.rescaled_guided_matched",
]
REST = ["sampler.steps=2", "noise.images=16", "bitwidth=w4a4"]
AUTO += REST


@pytest.fixture
def chosen(shared):
    return shared("goal=fit", *AUTO)


def test_the_choice_is_one_of_the_candidates_bit_for_bit(shared, chosen):
    found = json.loads((chosen / "choice.json").read_text())
    assert set(found["trials"]) == {"none", "ptqd_gated", "matched", "rescaled_matched"}
    alone = shared("goal=fit", *REST, f"correction={found['chosen']}")
    for name in ("correction.safetensors", "correction.json"):
        assert (chosen / name).read_bytes() == (alone / name).read_bytes()


def test_candidates_are_fitted_once_for_all_runs(shared, chosen):
    fits = chosen.parent
    before = {folder.name for folder in fits.iterdir()}
    for candidate in ("none", "ptqd_gated", "matched", "rescaled_matched"):
        shared("goal=fit", *REST, f"correction={candidate}")
    assert {folder.name for folder in fits.iterdir()} == before
    assert shared("goal=fit", *AUTO) == chosen


def test_a_candidate_that_cannot_be_fitted_is_named(make):
    with pytest.raises(ValueError, match=r"of matched: expected at least 14 images.*or leave out with ~correction"):
        make("goal=fit", *AUTO, "noise.images=5")


def test_another_judge_chooses_anew_and_trials_are_of_images_of_their_own(shared, chosen, monkeypatch):
    forward, purposes = DrawImages.forward, set()

    def noted(self, chunk, device):
        purposes.add(chunk.purpose)
        return forward(self, chunk, device)

    monkeypatch.setattr(DrawImages, "forward", noted)
    monkeypatch.setattr(DistanceToFloat, "checksum", lambda self: "another")
    assert shared("goal=fit", *AUTO) != chosen
    assert purposes == {"trial"}


def test_a_killed_trial_goes_on_where_it_was(make, chosen, monkeypatch, tmp_path):
    forward, done = DrawImages.forward, []

    def dies(self, *arguments):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(arguments)
        return forward(self, *arguments)

    again = tmp_path / "again"
    shutil.copytree(chosen.parents[1], again / "store", ignore=shutil.ignore_patterns(f"{chosen.name}*"))
    elsewhere = [*AUTO, f"outputs={again}"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DrawImages, "forward", dies)
        make("goal=fit", *elsewhere)
    again = make("goal=fit", *elsewhere)
    for name in ("choice.json", "correction.safetensors", "correction.json"):
        assert (again / name).read_bytes() == (chosen / name).read_bytes()
