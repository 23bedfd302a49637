"""Processes of their own that begin with everything imported, where it does not matter how they begin.

They are forked from one that imports the package once. A process that is started afresh imports for seconds.
"""

import multiprocessing
import os
import sys

import pytest
import torch
from lightning.fabric.strategies.ddp import DDPStrategy

from ptq_diffusion.main import main

AFRESH = multiprocessing.get_context("forkserver")
AFRESH.set_forkserver_preload(["ptq_diffusion.command.experiment", "tests.processes"])


@pytest.fixture
def imported(monkeypatch):
    """The processes of several devices begin with everything imported; they are sent the same, pickled."""
    if not torch.cuda.is_available():
        monkeypatch.setattr("ptq_diffusion.engine.runtime.DDPStrategy", forked)


def forked(start_method, **options):
    assert start_method == "spawn", "which sends the same in the same way"
    return DDPStrategy(start_method="forkserver", **options)


def started_commands(folder, *commands):
    """Commands at the same time, each words and variables of the environment; (exit code, output, errors) of each."""
    files = [(folder / f"{place}.out", folder / f"{place}.err") for place in range(len(commands))]
    processes = [
        AFRESH.Process(target=command, args=(words, variables, *map(str, paths)))
        for (words, variables), paths in zip(commands, files, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [
        (process.exitcode, *(path.read_text() for path in paths))
        for process, paths in zip(processes, files, strict=True)
    ]


def command(words, variables, *paths):
    """The command line in this process, its output and errors in two files."""
    for path, descriptor in zip(paths, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.argv = ["ptq-diffusion", *words]
    main()
