"""Sweeps: a job that fails says why and leaves the others alone, and nothing is left that belongs to no job."""

import json

import pytest

from ptq_diffusion.stage.fit import Fit


@pytest.fixture
def failed(command, capsys):
    """Run a sweep that is expected to fail; what it prints."""

    def run_one(*arguments):
        with pytest.raises(SystemExit) as ended:
            command("-m", *arguments)
        assert ended.value.code == 1
        return capsys.readouterr().out

    return run_one


def failures(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/runs/*/failure.json")}


def test_a_choice_that_does_not_fit_is_recorded_and_the_next_job_runs(failed, tmp_path):
    said = failed("sampler.eta=2,0", "correction=none")
    ((run, failure),) = failures(tmp_path).items()
    assert failure["error"] == "ValueError" and failure["config"]["sampler"]["eta"] == 2
    assert "sampler.eta=2" in failure["overrides"] and "check(cfg, stage, shop" in failure["traceback"]
    assert "1 failed; the others are complete" in said and said.count(failure["message"]) == 2 and run in said
    assert len(list(tmp_path.glob("outputs/runs/*/report.json"))) == 1


def test_a_job_without_a_signature_leaves_its_failure_too(failed, tmp_path):
    failed("correction=none", "model.path=/nowhere")
    ((run, failure),) = failures(tmp_path).items()
    assert run.startswith("unnamed-") and "there is no folder /nowhere" in failure["message"]


def test_jobs_that_write_to_different_places_are_one_sweep(failed, tmp_path):
    """A job's own `outputs` holds its failure, and the sweep that it belongs to knows of it."""
    places = [tmp_path / "it's one, two", tmp_path / "three"]
    quoted = ",".join('"' + str(place) + '"' for place in places)
    said = failed("goal=trajectories", "sampler.eta=2", f"outputs={quoted}")
    found = [path for place in places for path in place.glob("runs/*/failure.json")]
    assert len(found) == 2 and all(str(path) in said for path in found) and "2 failed" in said


def test_a_job_that_failed_is_made_again_and_its_failure_forgotten(failed, command, tmp_path, monkeypatch):
    make = Fit.make

    def full_disk(self, cfg, *rest):
        if cfg.correction.get("variance") == "pooled":
            raise OSError("no space left on device")
        make(self, cfg, *rest)

    monkeypatch.setattr(Fit, "make", full_disk)
    failed("correction=ptqd,none")
    ((run, failure),) = failures(tmp_path).items()
    assert "-ptqd-" in run and failure["message"] == "no space left on device"
    monkeypatch.setattr(Fit, "make", make)
    said = command("-m", "correction=ptqd,none")
    assert not failures(tmp_path) and len(list(tmp_path.glob("outputs/runs/*/report.json"))) == 2
    assert said.count("calibrate: making") == 0 and said.count("fit: making") == 1


def test_a_single_run_that_is_refused_before_it_begins_leaves_nothing(command, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^error: expected eta in \[0, 1\]"):
        command("sampler.eta=2")
    assert capsys.readouterr().err == "", "the message is what the exit says, Hydra adds nothing"
    assert not list(tmp_path.glob("outputs/runs/*"))


def test_the_failure_of_a_single_run_on_its_way_is_recorded_and_told_once(command, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise ValueError("expected another day")

    monkeypatch.setattr(Fit, "make", refuse)
    with pytest.raises(SystemExit, match=r"expected another day"):
        command("correction=ptqd")
    assert "expected another day" not in capsys.readouterr().err
    assert [failure["sweep"] for failure in failures(tmp_path).values()] == [None]


def test_every_sweep_has_a_folder_of_its_own_without_logs(command, tmp_path):
    for _ in range(2):
        command("-m", "goal=trajectories", "sampler.steps=2,3")
    found = [path.relative_to(tmp_path / "outputs/hydra") for path in (tmp_path / "outputs/hydra").rglob("*")]
    assert len({path.parts[0] for path in found}) == 2
    assert {path.name for path in found if len(path.parts) > 1} == {"multirun.yaml"}
