"""Weights & Biases: one offline run for each job, with its config, table, images and summary, closed at the end."""

import struct
import time

import pytest
from omegaconf import OmegaConf
from wandb.proto import wandb_internal_pb2

from ptq_diffusion.command import experiment
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.tracking import NoTracker


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
    _, folder = report("logger=wandb")
    (path,) = runs_of(folder)
    ended = records(path)
    found = {record.WhichOneof("record_type"): record for record in ended}
    (run,) = [record.run for record in ended if record.WhichOneof("record_type") == "run"]
    assert run.display_name == folder.name
    assert "sampler" in {item.key for item in run.config.update}
    assert found["exit"].exit.exit_code == 0
    logged = {item.key or "/".join(item.nested_key) for r in ended for item in r.history.item}
    logged |= {item.key or "/".join(item.nested_key) for r in ended for item in r.summary.update}
    assert {"fid", "report", "images", "noise"} <= {key.split("/")[0] for key in logged}


def test_every_job_of_a_sweep_has_its_own_run(command, tmp_path):
    command("-m", "correction=none,ptqd", "logger=wandb")
    folders = list((tmp_path / "outputs" / "runs").iterdir())
    assert [len(runs_of(folder)) for folder in folders] == [1, 1]
    names = set()
    for folder in folders:
        names |= {r.run.display_name for r in records(runs_of(folder)[0]) if r.WhichOneof("record_type") == "run"}
    assert names == {folder.name for folder in folders}


def test_a_failed_job_is_closed_as_failed(report, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(experiment, "make_report", fails)
    with pytest.raises(OSError, match="no space"):
        report("logger=wandb")
    (path,) = (tmp_path / "outputs" / "runs").glob("*/wandb/offline-run-*/*.wandb")
    assert [r.exit.exit_code for r in records(path) if r.WhichOneof("record_type") == "exit"] == [1]


@pytest.mark.parametrize("method", ["start", "report", "finish"])
def test_a_logger_that_fails_is_said_and_fails_nothing(make, capsys, monkeypatch, method):
    def fails(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(NoTracker, method, fails)
    assert make("correction=none").is_file()
    assert "the logger failed, which changes no result (ConnectionError: no route to host)" in capsys.readouterr().out


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="'offline' or 'online'"):
        construct(
            OmegaConf.create(
                {
                    "_target_": "ptq_diffusion.engine.tracking.WandbTracker",
                    "project": "p",
                    "mode": "cloud",
                    "group": None,
                }
            )
        )
