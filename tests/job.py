"""A small job, started as from a command line, and what must hold when it is refused."""

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ptq_diffusion.main import main

TINY = [
    "model=diffusers",
    "feature=cifar10net",
    "sampler.steps=3",
    "images=3",
    "seeds=[0]",
    "micro_batch=2",
    "calibration.images=2",
    "drift.images=2",
    "noise.images=2",
    "judging.replicates=2",
    "judging.neighbours=1",
    "runtime.accelerator=cpu",
    "runtime.progress=false",
    "logger=none",
]
NOWHERE = "/nowhere/at/all"


def started(*words):
    sys.argv = ["ptq-diffusion", *map(str, words)]
    main()


@dataclass(frozen=True)
class Place:
    """Where a case may break something."""

    outputs: Path
    scratch: Path
    model: Path
    patch: pytest.MonkeyPatch

    def artefact(self, stage):
        return next(path for path in (self.outputs / "store" / stage).iterdir() if path.is_dir())


def complete(outputs):
    """Digests of the files of all artefacts that are complete."""
    folders = [path for path in outputs.glob("store/*/*") if path.is_dir() and path.suffix != ".partial"]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(outputs)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def assert_clear(message, remedy):
    """One line for the user, of what was expected and of what to do; a text ends the process with 1."""
    assert isinstance(message, str), "the command failed in some other way"
    assert message.startswith("error: ")
    assert re.search(remedy, message), message
    assert "\n" not in message
    assert len(message) < 700
