"""A cold run does each thing once: weights read and hashed, signatures computed, networks built."""

import builtins
from collections import Counter

import pytest
import torch

from ptq_diffusion.artefact import digest
from ptq_diffusion.engine import workshop
from ptq_diffusion.engine.signature import Signatures
from ptq_diffusion.model import diffusers_denoiser

SMALL = ["images=3", "seeds=[0]", "noise.images=16", "feature=pixels", "judging.neighbours=1"]
RUNS = {
    "ptqd": (["correction=ptqd"], 1),
    "a choice among three": (
        [
            *("goal=fit", "correction=auto", "trial.images=5", "correction.judge.replicates=5"),
            *("~correction.candidates.matched", "~correction.candidates.readout_matched"),
            *("~correction.candidates.rescaled_readout_matched", "~correction.candidates.rescaled_guided_matched"),
        ],
        4,
    ),
}


@pytest.fixture
def counted(monkeypatch):
    """How often what was done, by its name."""
    counts = Counter()

    def count(owner, name, word):
        done = getattr(owner, name)

        def run(*arguments, **options):
            counts[word(*arguments)] += 1
            return done(*arguments, **options)

        monkeypatch.setattr(owner, name, run, raising=False)

    count(diffusers_denoiser, "load_folder", lambda path, *_: "weights")
    digest._contents_digest.cache_clear()
    monkeypatch.setattr(digest, "open", builtins.open, raising=False)
    count(digest, "open", lambda file, *_: f"digest of {file}")
    count(Signatures, "computed", lambda self, stage, cfg: f"signature of {stage.name} {cfg.correction}")
    count(workshop, "load_quantized", lambda folder, *_: "quantized network")
    count(diffusers_denoiser, "count_macs", lambda network, *_: f"MACs on {next(network.parameters()).device}")
    return counts


@pytest.mark.parametrize(("overrides", "fits"), RUNS.values(), ids=RUNS)
def test_a_cold_run_does_each_thing_once(make, counted, overrides, fits):
    make(*SMALL, *overrides)
    assert counted.pop("MACs on meta") == 2, "one count of the float network, one of the quantized"
    assert counted["weights"] == counted["quantized network"] == 1
    assert len([word for word in counted if word.startswith("digest of")]) == 4, "three configurations and the weights"
    assert {word: times for word, times in counted.items() if times > 1} == {}
    # Candidates of a choice have a configuration each and share the artefacts behind them.
    stages = Counter(word.split()[2] for word in counted if word.startswith("signature of"))
    assert stages.pop("fit") == fits and set(stages.values()) == {1}


def test_networks_are_given_to_all_and_changed_by_none(make, monkeypatch):
    built, model = [], workshop.Workshop.model

    def noted(self, cfg):
        found = model(self, cfg)
        built.append((found, {name: tensor.clone() for name, tensor in found.state_dict().items()}))
        return found

    monkeypatch.setattr(workshop.Workshop, "model", noted)
    make(*SMALL, "correction=rescaled_matched")
    last = built[-1][0].state_dict()
    assert all(network is built[0][0] for network, _ in built)
    assert all(torch.equal(last[name], tensor) for _, state in built for name, tensor in state.items())
