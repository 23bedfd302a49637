"""Trackers: one log for each run, with its config, numbers, curves and images; their failures are lines, not errors."""

import csv
import json
import struct
import time
from types import SimpleNamespace

import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from wandb.proto import wandb_internal_pb2

from ptq_diffusion.command import experiment
from ptq_diffusion.engine import tracking
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.tracker import Description, Guarded, Results, Tracker
from ptq_diffusion.engine.tracking import TensorBoardTracker, WandbTracker


def records(path):
    """The records of an offline run, all of them: its writer is another process, whose last one says that it ended."""
    for _ in range(600):
        found = list(written(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise TimeoutError(f"expected {path} to end with the run's exit, got {len(found)} records and none of it")


def written(path):
    """The records that are on the disk so far: a LevelDB log of 32 KiB blocks after a header of 7 bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def runs_of(folder):
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def test_a_report_is_logged_offline_and_closed(report):
    content, folder = report("logger=wandb", "logger.tags=[mine]", "logger.notes=why")
    (path,) = runs_of(folder)
    ended = records(path)
    found = {record.WhichOneof("record_type"): record for record in ended}
    (run,) = [record.run for record in ended if record.WhichOneof("record_type") == "run"]
    assert folder.name.endswith(f"-{run.run_id}")
    assert (run.display_name, run.job_type, run.run_group, run.notes) == (folder.name, "report", "", "why")
    assert set(run.tags) == {"diffusers", "ddim", "w4a8", "ptqd", "mine"}
    assert "sampler" in {item.key for item in run.config.update}
    assert found["exit"].exit.exit_code == 0

    summary = {name(item): json.loads(item.value_json) for record in ended for item in record.summary.update}
    for row in content["rows"]:
        assert summary[f"{row['variant']}/fid"] == pytest.approx(row["fid"])
    (gain,) = [p for p in content["paired"] if (p["a"], p["b"], p["metric"]) == ("quantized", "corrected", "fid")]
    assert summary["quantized - corrected/fid/low"] == pytest.approx(gain["low"])
    history = [{name(item): json.loads(item.value_json) for item in record.history.item} for record in ended]
    assert [row["steps/i"] for row in history if "steps/i" in row] == [0, 1, 2]
    (last,) = [row for row in history if "report/nrows" in row]
    assert [last[f"{figure}/caption"] for figure in ("images", "noise")] == ["images.png", "noise.png"]
    assert last["samples/corrected/captions"][1] == "corrected, sample 1"


def name(item):
    return item.key or "/".join(item.nested_key)


def test_every_job_of_a_sweep_has_its_own_run(command, tmp_path):
    command("-m", "goal=trajectories", "sampler.eta=0,1", "logger=wandb")
    folders = list((tmp_path / "outputs" / "runs").iterdir())
    assert [len(runs_of(folder)) for folder in folders] == [1, 1]
    runs = [r.run for folder in folders for r in records(runs_of(folder)[0]) if r.WhichOneof("record_type") == "run"]
    assert {run.display_name for run in runs} == {folder.name for folder in folders}
    (sweep,) = (path.parent.name for path in (tmp_path / "outputs" / "hydra").glob("*/multirun.yaml"))
    assert {run.run_group for run in runs} == {sweep}


def test_a_failed_job_is_closed_as_failed(report, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(experiment, "make_report", fails)
    with pytest.raises(OSError, match="no space"):
        report("logger=wandb")
    (path,) = (tmp_path / "outputs" / "runs").glob("*/wandb/offline-run-*/*.wandb")
    assert [r.exit.exit_code for r in records(path) if r.WhichOneof("record_type") == "exit"] == [1]


def test_another_mode_is_refused():
    node = {"_target_": "ptq_diffusion.engine.tracking.WandbTracker", "mode": "cloud"}
    with pytest.raises(ValueError, match="'offline' or 'online'"):
        construct(OmegaConf.create(node))


@pytest.fixture
def described(tmp_path):
    """A run, and the lines that its user is shown."""
    lines: list[str] = []
    return Description("0" * 16, "name", tmp_path, "report", "sweep", ("w4a8",), {"images": 1}, lines.append), lines


RESULTS = Results(
    rows=[{"variant": "corrected", "fid": 1.5, "seeds": [0], "images": 1, "sfid": None}],
    paired=[{"a": "quantized", "b": "corrected", "metric": "fid", "difference": 1.0, "low": 0.5, "high": 1.5}],
    steps=[{"t": 900.0, "k": 0.1, "budget": None}, {"t": 100.0, "k": 0.2, "budget": 0.5}],
    images={"corrected": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)},
)


def test_the_environment_outranks_the_mode(described, monkeypatch):
    run, _ = described
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = WandbTracker(mode="online")
    assert tracker.start(run) == ()
    tracker.report(RESULTS)
    tracker.finish(True)
    assert not (run.folder / "wandb").exists()


def no_connection(**_):
    raise wandb.errors.AuthenticationError("no route to host")


@pytest.mark.parametrize(
    ("login", "reason"), [(lambda **_: False, "wandb login"), (no_connection, "no route to host")], ids=["login", "net"]
)
def test_an_online_run_that_cannot_be_is_offline_and_says_so_before_the_work(described, monkeypatch, login, reason):
    run, lines = described
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", login)
    opened = []
    monkeypatch.setattr(wandb, "init", lambda **options: opened.append(options) or wandb_run())
    WandbTracker(mode="offline").start(run)
    assert [options["mode"] for options in opened] == ["offline"]
    (line,) = lines
    assert reason in line and f"wandb sync {run.folder}/wandb/offline-run-*" in line


def wandb_run():
    return SimpleNamespace(url="https://example.org/run", define_metric=lambda *_, **__: None)


def test_an_online_run_resumes_by_its_signature_and_shows_its_url(described, monkeypatch):
    run, lines = described
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    opened = []
    monkeypatch.setattr(wandb, "init", lambda **options: opened.append(options) or wandb_run())
    WandbTracker(mode="online", entity="team", group="mine").start(run)
    (options,) = opened
    assert {
        "id": run.id,
        "resume": "allow",
        "mode": "online",
        "entity": "team",
        "group": "mine",
    }.items() <= options.items()
    assert lines == ["Weights & Biases: https://example.org/run"]


class Broken(Tracker):
    """Fails where it is told to."""

    def __init__(self, where):
        self.where = where

    def start(self, run):
        if self.where == "start":
            raise OSError("the disk is full")
        return [BrokenLogger(run.folder)]

    def report(self, results):
        if self.where == "report":
            raise TypeError("no such table")

    def finish(self, success):
        if self.where == "finish":
            raise RuntimeError("the other process is gone")


class BrokenLogger(CSVLogger):
    def log_metrics(self, metrics, step=None):
        raise ConnectionError("the other process is gone")


@pytest.mark.parametrize("where", ["start", "report", "finish", "training"])
def test_a_failure_of_a_tracker_is_one_line(described, where):
    run, lines = described
    tracker = Guarded(Broken(where), run.say)
    loggers = tracker.start(run)
    if where == "training":
        loggers[0].log_metrics({"loss": 1.0}, 1)
        loggers[0].finalize("success")
    for _ in range(2):
        tracker.report(RESULTS)
    tracker.finish(True)
    (line,) = lines
    assert line.startswith("Broken failed, and the run goes on without it (") and "logger=none" in line


def test_lightnings_csv_logger_has_the_numbers_of_the_report(report):
    for _ in range(2):  # a repeated run writes it anew
        content, folder = report("logger=csv")
    rows = list(csv.DictReader((folder / "csv" / "metrics.csv").read_text().splitlines()))
    assert [float(row["steps/i"]) for row in rows if row["steps/i"]] == [0, 1, 2]
    (fid,) = (float(row["corrected/fid"]) for row in rows if row["corrected/fid"])
    assert fid == pytest.approx(content["rows"][-1]["fid"])
    assert (folder / "csv" / "hparams.yaml").is_file()


def test_tensorboard_names_its_extra_where_it_is_missing(described, monkeypatch):
    run, lines = described
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    tracker = Guarded(TensorBoardTracker(), run.say)
    assert list(tracker.start(run)) == []
    tracker.report(RESULTS)
    assert len(lines) == 1 and "pip install '.[tensorboard]'" in lines[0]


def test_tensorboard_has_curves_and_images(described):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = described
    tracker = TensorBoardTracker()
    tracker.start(run)
    tracker.report(RESULTS)
    tracker.finish(True)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("steps/k")] == [0, 1]
    assert events.Scalars("corrected/fid")[0].value == 1.5
    assert events.Tags()["images"]
