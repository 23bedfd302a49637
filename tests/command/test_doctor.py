"""The doctor finds what would break an experiment, says what to do, and fails then and only then."""

import errno
import io
import os
import re

import pytest
from rich.console import Console

from ptq_diffusion.command import doctor

INSTALLED = dict.fromkeys(doctor.NEEDED, "1.0")


def broken():
    raise RuntimeError("operator torchvision::nms does not exist")


def found(findings):
    return list(findings) if not isinstance(findings, doctor.Finding) else [findings]


BREAKING = {
    "an old Python": (lambda: doctor.python((3, 10, 1)), "3.11"),
    "a missing library": (lambda: doctor.libraries(INSTALLED | {"diffusers": None}), "pip install"),
    "a malicious release": (lambda: doctor.lightning("2.6.3"), "uninstall"),
    "another malicious release": (lambda: doctor.lightning("2.6.2"), "credentials"),
    "a torchvision of another torch": (lambda: doctor.torchvision(True, broken), "uninstall torchvision"),
    "a package that does not import": (lambda: doctor.imports(broken), "fresh environment"),
}
MINDED = {
    "a missing extra": (lambda: doctor.extras({"data": None}), r"'\.\[data\]'"),
    "no encoder of prompts": (lambda: doctor.extras({"text": None}), r"'\.\[text\]'"),
    "more threads than cores": (lambda: doctor.threads({"OMP_NUM_THREADS": "8"}, 2), "OMP_NUM_THREADS=2"),
    "threads that are no number": (lambda: doctor.threads({"OMP_NUM_THREADS": "all"}, 2), "whole number"),
    "threads that are unset": (lambda: doctor.threads({}, 2), "OMP_NUM_THREADS=1"),
    "a mode of the environment": (lambda: doctor.tracking({"WANDB_MODE": "disabled"}), "unset WANDB_MODE"),
}
FINE = {
    "Python": lambda: doctor.python((3, 11, 0)),
    "libraries": lambda: doctor.libraries(INSTALLED),
    "extras": lambda: doctor.extras({"data": "1.0"}),
    "Lightning": lambda: doctor.lightning("2.6.6"),
    "no torchvision": lambda: doctor.torchvision(False, broken),
    "a torchvision that imports": lambda: doctor.torchvision(True, lambda: None),
    "threads": lambda: doctor.threads({"OMP_NUM_THREADS": "2"}, 2),
    "offline": lambda: doctor.tracking({}),
}


@pytest.mark.parametrize(("look", "remedy"), BREAKING.values(), ids=BREAKING)
def test_what_breaks_the_main_job_is_said_with_a_remedy(look, remedy):
    (finding,) = [finding for finding in found(look()) if finding.breaks]
    assert re.search(remedy, finding.remedy), finding


@pytest.mark.parametrize(("look", "remedy"), MINDED.values(), ids=MINDED)
def test_what_is_only_to_be_minded_breaks_nothing(look, remedy):
    (finding,) = found(look())
    assert not finding.breaks
    assert re.search(remedy, finding.remedy), finding


@pytest.mark.parametrize("look", FINE.values(), ids=FINE)
def test_what_is_fine_asks_for_nothing(look):
    assert not [finding for finding in found(look()) if finding.breaks or finding.remedy]


def examined(monkeypatch, outputs, *planted):
    monkeypatch.setattr(doctor, "findings", lambda outputs: iter(planted))
    file = io.StringIO()
    return doctor.examine([str(outputs)], Console(file=file)), file.getvalue()


def test_the_exit_code_is_that_of_what_breaks(monkeypatch, tmp_path):
    fine, minded = doctor.Finding("a", "well"), doctor.Finding("b", "so so", "do this")
    breaks = doctor.Finding("c", "bad", "do that", breaks=True)
    assert examined(monkeypatch, tmp_path, fine, minded)[0] == 0
    code, said = examined(monkeypatch, tmp_path, fine, minded, breaks)
    assert code == 1
    assert "do that" in said
    assert said.splitlines()[-1] == "an experiment would break on c"


def test_nothing_is_imported_that_a_broken_torchvision_breaks(monkeypatch, tmp_path):
    def load(name):
        if name == "torchvision":
            broken()
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(doctor, "find_spec", lambda name: True)
    monkeypatch.setattr(doctor, "import_module", load)
    names = {finding.name for finding in doctor.findings(tmp_path) if finding.breaks}
    assert names == {"torchvision"}


def test_this_installation_runs_the_main_job(tmp_path):
    assert doctor.bundled() == doctor.Finding(
        "bundled files", "models, feature networks and references are as published"
    )
    assert not doctor.writable(tmp_path / "later" / "outputs").breaks
    assert list(tmp_path.iterdir()) == [], "a doctor leaves nothing behind"


def test_a_bundled_file_that_changed_is_found(monkeypatch):
    (path, *_) = doctor.MODEL_CHECKSUMS
    monkeypatch.setitem(doctor.MODEL_CHECKSUMS, path, "another")
    assert doctor.bundled().breaks


def test_outputs_that_cannot_be_written_are_found(monkeypatch, tmp_path):
    def refuse(**options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert doctor.writable(tmp_path).breaks
