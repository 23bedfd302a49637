"""Whatever interrupts a run, the same command goes on and ends with the same bytes."""

import json
import os
import random
import shutil

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch.optim import SGD

from ptq_diffusion.correction import FittedCorrection, Rescaled
from ptq_diffusion.engine.chunks import read_chunks
from ptq_diffusion.engine.run_files import REPORT
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric import ResNet9
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.stage.path_fit import PathFit
from ptq_diffusion.stage.training.checkpoint import SafetensorsCheckpointIO, present
from ptq_diffusion.stage.training.denoiser_training import DenoiserTraining
from ptq_diffusion.stage.training.feature_network_training import FeatureNetworkTraining
from ptq_diffusion.stage.training.objective import MinSnr
from ptq_diffusion.stage.training.resumable_fit import WarmupStableDecay
from tests.engine.test_store import CFG, Digits, changed

SMALL = ["images=3", "seeds=[0]", "noise.images=5"]


class Killed(BaseException):
    """What no code catches."""


def contents(outputs):
    """Every file of the store and the report by its path, but locks and what was said when, by whom and how fast."""
    paths = [path for path in outputs.rglob("*") if path.is_file()]
    paths = [path for path in paths if path.suffix not in (".lock", ".seconds") and path.name != "log.txt"]
    return {str(path.relative_to(outputs)): content(path) for path in paths}


def content(path):
    """The bytes of a file; those of a report without where it comes from."""
    if path.name != REPORT:
        return path.read_bytes()
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "provenance"}


def killed_at(monkeypatch, count):
    """Die at the `count`-th renaming: the file is written beside its place and not yet in it."""
    done, replace = [], os.replace

    def dies(*paths):
        if len(done) == count:
            raise Killed
        done.append(paths)
        replace(*paths)

    monkeypatch.setattr(os, "replace", dies)
    return done


def test_a_run_killed_before_files_get_their_names_ends_with_the_same_bytes(make, tmp_path, monkeypatch):
    """Killed four times on its way, each time further on, and at last with nothing left to do."""
    # The folder's name is in no artefact, but it is in the run's own configuration, so every run has the same one.
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        done = killed_at(patch, None)
        make(*SMALL, "outputs=outputs")
    whole = contents(tmp_path / "outputs")
    (tmp_path / "outputs").rename(tmp_path / "first")
    draw, part = random.Random(0), len(done) // 5
    for _ in range(4):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, draw.randrange(1, part))
            make(*SMALL, "outputs=outputs")
    make(*SMALL, "outputs=outputs")
    found = contents(tmp_path / "outputs")
    assert found.keys() == whole.keys()
    assert [name for name in found if found[name] != whole[name]] == []


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder of outputs in which all that fits begin with is made once; a copy of it is each test's own."""
    return tmp_path_factory.mktemp("measured") / "outputs"


@pytest.fixture
def fit(make, measured, tmp_path):
    """Fit a correction in a folder, where nothing is fitted yet and all that fits begin with is there."""

    def make_one(folder, *words):
        make("goal=noise", f"outputs={measured}", *words)
        if not (tmp_path / folder).exists():
            shutil.copytree(measured, tmp_path / folder)
        return make("goal=fit", f"outputs={tmp_path / folder}", *words)

    return make_one


@pytest.mark.parametrize("correction", ["wiener", "rescaled"])
def test_a_fit_killed_on_its_way_goes_on_and_ends_with_the_same_bytes(fit, monkeypatch, correction):
    """At its first step and at later ones; a step has two chunks."""
    words = [f"correction={correction}", "noise.images=8"]
    expected = contents(fit("whole", *words))
    for visits in (1, 4):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(PathFit, "_visit", dying(visits))
            fit(f"killed{visits}", *words)
        assert contents(fit(f"killed{visits}", *words)) == expected


def dying(visits):
    """`PathFit._visit` that is killed after so many."""
    visit, done = PathFit._visit, []

    def dies(self, *arguments):
        if len(done) == visits:
            raise Killed
        done.append(arguments)
        visit(self, *arguments)

    return dies


def test_layers_are_rescaled_alike_before_and_after_a_kill(fit, monkeypatch):
    """What is found anew might differ in its last bits, and chunks of the step are kept that were asked before."""
    words = ["correction=rescaled", "noise.images=10"]
    expected = contents(fit("whole", *words))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PathFit, "_visit", dying(4))
        fit("killed", *words)
    find, given = Rescaled.rescalings, []
    monkeypatch.setattr(Rescaled, "rescalings", lambda *words: given.append(len(words[3].x_t)) or find(*words))
    assert contents(fit("killed", *words)) == expected
    assert given == [10], "at the last step only, and of all images without padding"


@pytest.mark.parametrize("killed", [False, True])
def test_the_work_of_a_fit_grows_with_the_steps_and_not_with_their_square(make, monkeypatch, killed):
    """Every noise is drawn and every step written once, and twice at most what was before a kill."""
    steps, drawn, saved = 6, [], []
    draw, save, visit = SampleNoise.draw, FittedCorrection.save, PathFit._visit
    monkeypatch.setattr(SampleNoise, "draw", lambda *given: drawn.append(1) or draw(*given))
    monkeypatch.setattr(
        FittedCorrection, "save", lambda own, folder: saved.extend(own.corrections) or save(own, folder)
    )
    goal = ["goal=fit", "correction=wiener", f"sampler.steps={steps}", "noise.images=7"]
    make("goal=noise", *goal[1:])
    drawn.clear()
    if killed:

        def dies(walk, chunk, step, *known):
            if step.i == steps - 1:
                raise Killed
            visit(walk, chunk, step, *known)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(PathFit, "_visit", dies)
            make(*goal)
    make(*goal)
    chunks = 2
    assert len(drawn) == chunks * steps + killed * chunks * (steps - 1)
    assert len(saved) == steps + steps, "once on the way and once at the end"


def test_chunks_that_a_power_cut_emptied_are_done_again(make, tmp_path, monkeypatch):
    folder = make("goal=trajectories", "calibration.images=8")
    # A copy: what is read lies in the mapped file, which is cut below.
    expected = [chunk["states"].clone() for chunk in read_chunks(folder / "chunks")]
    partial = folder.rename(folder.with_suffix(".partial"))
    (partial / "files.json").unlink()
    emptied, cut = sorted((partial / "chunks").iterdir())
    emptied.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-1])
    again = make("goal=trajectories", "calibration.images=8")
    assert all(map(torch.equal, expected, (chunk["states"] for chunk in read_chunks(again / "chunks"))))


def test_a_file_that_a_killed_process_had_begun_beside_an_artefact_is_removed_with_the_next_attempt(tmp_path):
    """Killed after everything was made and before it was written how long that took; other artefacts are left alone."""
    store = Store(tmp_path, Workshop(Runtime("cpu", False)))
    signatures = [store.signature(Digits, cfg) for cfg in (CFG, changed("a.number", 5))]
    (tmp_path / "digits").mkdir()
    left, other = (tmp_path / "digits" / f"{signature}.seconds.1.tmp" for signature in signatures)
    for file in (left, other):
        file.write_text("")
    store.obtain(Digits, CFG)
    assert not left.exists() and other.exists()


@pytest.mark.parametrize("moment", range(3))
def test_a_checkpoint_survives_a_kill_while_the_next_is_saved(tmp_path, monkeypatch, moment):
    io, path = SafetensorsCheckpointIO(), tmp_path / "last.ckpt"
    for step in (1, 2):
        io.save_checkpoint({"step": step, "x": torch.full((3,), step)}, path)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, moment)
        for step in (3, 4):
            io.save_checkpoint({"step": step, "x": torch.full((3,), step)}, path)
    found = io.load_checkpoint(path)
    assert found["step"] in (2, 3) and found["x"].tolist() == [found["step"]] * 3
    io.save_checkpoint({"step": 5, "x": torch.zeros(1)}, path)
    assert io.load_checkpoint(path)["step"] == 5
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert present(path) == path and load_file(path / "tensors.safetensors").keys() == {"/x"}


def test_no_checkpoint_holds_the_length_of_the_training():
    """Else a training that goes on with more steps would decay at the end of the fewer: LambdaLR keeps objects."""
    rate, network = WarmupStableDecay(8, 2, 4), ResNet9("tiny", [4, 4, 8, 8], 2)
    objective = MinSnr(5.0, DDPMScheduler())
    for module in (
        FeatureNetworkTraining(network, lambda p: SGD(p, 0.1), rate, 0.1),
        DenoiserTraining(network, objective, lambda p: SGD(p, 0.1), rate, 0.9, 0.0),
    ):
        schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
        assert schedule.state_dict()["lr_lambdas"] == [None]
