"""What breaks on the way gets one clear message, and nothing that was computed is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ptq_diffusion.artefact import tensors
from ptq_diffusion.model import DiffusersDenoiser, Output
from tests.job import TINY, assert_clear, started
from tests.processes import started_commands
from tests.words import quick


def truncated(stage, name):
    def prepare(place):
        path = next(place.artefact(stage).rglob(name))
        path.write_bytes(path.read_bytes()[:-9])
        return ["correction=bias"] if stage != "evaluate" else []

    return prepare


def foreign_owner(place):
    path = place.artefact("calibrate") / "inputs.safetensors"
    ranges = {name.replace("conv_in/", "elsewhere/"): tensor.clone() for name, tensor in load_file(path).items()}
    save_file(ranges, path)
    manifest = path.parent / "files.json"
    sizes = json.loads(manifest.read_text()) | {path.name: path.stat().st_size}
    manifest.write_text(json.dumps(sizes))
    return ["bitwidth=w4a4"]


def foreign_fingerprint(place):
    path = place.artefact("noise") / "noise.safetensors"
    other = place.scratch / "other"
    started_quietly(place, "goal=noise", "sampler.eta=0.5", f"outputs={other}")
    shutil.copy(next(other.glob("store/noise/*/noise.safetensors")), path)
    return ["correction=bias"]


def started_quietly(place, *words):
    started(*quick([*TINY, f"model.path={place.model}", *words]))


def no_number(place):
    place.patch.setattr(DiffusersDenoiser, "predict", lambda self, x_t, step, condition=None: Output(x_t * torch.nan))
    return ["seeds=[7]"]


def failing_save(error):
    def prepare(place):
        def save(*arguments):
            raise error

        place.patch.setattr(tensors, "save", save)
        return ["seeds=[7]"]

    return prepare


def no_memory(place):
    def predict(self, x_t, step, condition=None):
        raise torch.OutOfMemoryError("tried to allocate 2 TiB")

    place.patch.setattr(DiffusersDenoiser, "predict", predict)
    return ["seeds=[7]"]


def read_only(place):
    mkdir = Path.mkdir

    def refuse(self, *arguments, **options):
        if str(self).startswith(str(place.outputs)) and not self.exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        mkdir(self, *arguments, **options)

    place.patch.setattr(Path, "mkdir", refuse)
    return ["seeds=[7]"]


def a_file_for_outputs(place):
    (place.scratch / "file").write_text("")
    return [f"outputs={place.scratch / 'file'}"]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_TOO = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
ACCIDENTS = {
    "truncated statistics": (truncated("noise", "noise.safetensors"), "the same command makes it again"),
    "truncated ranges": (truncated("calibrate", "inputs.safetensors"), "inputs.safetensors as it was written"),
    "a truncated plan": (truncated("plan", "plan.json"), "plan.json as it was written"),
    "a truncated network": (truncated("quantize", "quantized.safetensors"), "quantized.safetensors as it was written"),
    "truncated images": (truncated("samples_quantized", "00*.safetensors"), "the same command makes it again"),
    "a truncated evaluation": (truncated("evaluate", "evaluation.json"), "evaluation.json as it was written"),
    "ranges of another network": (foreign_owner, "calibrate again"),
    "statistics of another table": (foreign_fingerprint, "noise statistics of the same"),
    "NaN in the output": (no_number, "not finite"),
    "a full disk": (failing_save(FULL), "make room"),
    "a disk that fills up under safetensors": (failing_save(FULL_TOO), "make room"),
    "a full memory": (no_memory, "lower micro_batch"),
    "outputs that cannot be written": (read_only, "outputs=FOLDER"),
    "outputs that are a file": (a_file_for_outputs, "check the path"),
}


@pytest.mark.parametrize(("prepare", "remedy"), ACCIDENTS.values(), ids=ACCIDENTS)
def test_an_accident_on_the_way(prepare, remedy, refused):
    assert_clear(refused([], prepare), remedy)


def process(*words, **variables):
    """The command line in a process of its own, (exit code, output, errors)."""
    ended = subprocess.run(
        [sys.executable, "-m", "ptq_diffusion", *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_a_process_fails_with_one_message_and_no_traceback(tmp_path):
    """One that composes nothing, and one that is refused when the experiment begins; other words end in process."""
    ended, asked = (process(f"outputs={tmp_path}", "sampler=dimm", HYDRA_FULL_ERROR=full) for full in ("", "1"))
    (forked,) = started_commands(tmp_path, (["images=0", f"outputs={tmp_path}"], {}))
    for code, said, errors in (ended, forked):
        assert code == 1 and errors.count("error: ") == 1
        assert "Traceback" not in errors + said
    assert asked[0] == 1 and "Traceback" in asked[2], "everything is shown to those who ask"


def test_a_programming_error_keeps_its_traceback(finished, tmp_path, monkeypatch):
    def predict(self, x_t, step, condition=None):
        return x_t.nothing_of_the_kind

    monkeypatch.setattr(DiffusersDenoiser, "predict", predict)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        started(*quick([*finished[0], f"outputs={tmp_path}"]))


def test_an_interruption_says_how_to_go_on(finished, tmp_path, monkeypatch, capsys):
    def interrupted(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr("ptq_diffusion.command.experiment.run", interrupted)
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit) as stop:
        started(*quick([*finished[0], f"outputs={tmp_path}"]))
    assert stop.value.code == 130
    assert "goes on" in capsys.readouterr().err


def test_the_environment_is_left_as_it_was(refused, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    refused(["sampler=dimm"])
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_run_shows_its_choices_and_keeps_what_it_said(finished, tmp_path, capsys, monkeypatch):
    words, outputs = finished
    shutil.copytree(outputs, tmp_path / "outputs")
    shutil.rmtree(next((tmp_path / "outputs" / "store").glob("evaluate/????????????????")))
    monkeypatch.setattr(sys, "argv", sys.argv)
    started(*quick([*words, f"outputs={tmp_path / 'outputs'}"]))
    said = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in said if line.strip()}
    assert "steps=3 eta=1.0" in shown["sampler"]
    (stored,) = (line for line in said if line.startswith("in the store"))
    assert "noise" in stored and "evaluate" not in stored
    (log,) = (tmp_path / "outputs" / "runs").glob("*/log.txt")
    kept = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    assert kept[-1] == said[-1]
    assert set(kept) <= {*said} | {line.split(" ", 1)[1] for line in first_log(outputs)}


def first_log(outputs):
    (log,) = (outputs / "runs").glob("*/log.txt")
    return log.read_text().splitlines()
