"""Two processes of one command, as on two nodes: they leave the bytes of one, and must be told the same."""

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ptq_diffusion.engine.ranks import Ranks
from tests.job import assert_clear
from tests.processes import started_commands
from tests.words import quick

SLURM_PORTS = 15_000
"""The first port of Slurm's jobs; the last four digits of a job's number are added."""
ROOT = Path(__file__).parents[2]
SMALL = ["goal=evaluate", "images=6", "noise.images=14", "correction=rescaled_matched"]
SMALL += ["correction.links.rescaled.images=9"]


def contents(outputs):
    """Every file of the store but locks and times, by its path."""
    paths = [path for path in outputs.glob("store/**/*") if path.is_file() and path.suffix not in (".lock", ".seconds")]
    return {str(path.relative_to(outputs)): path.read_bytes() for path in paths}


def port():
    """A free one among those that Lightning gives Slurm's jobs."""
    for place in random.SystemRandom().sample(range(SLURM_PORTS, SLURM_PORTS + 10_000), 100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", place))
            return place
    pytest.fail("no free port")


def nodes(words):
    """Both processes, each started as on a node of its own; (exit code, output, errors) of each."""
    place = port()
    processes = [
        subprocess.Popen(
            torchrun(node, place) + ["-m", "ptq_diffusion", *quick(words)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    ended = [process.communicate() for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, ended, strict=True)]


def torchrun(node, place):
    options = ["--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    return [sys.executable, "-m", "torch.distributed.run", *options, f"--master-port={place}"]


def torchruns(node, place):
    """The variables that torchrun sets, which are enough without its own process."""
    names = {"RANK": node, "GROUP_RANK": node, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": place, "TORCHELASTIC_RUN_ID": "none"}
    return {name: str(value) for name, value in (names | address).items()}


def slurms(node, place):
    """The variables that srun sets in a job of two nodes, the end of whose number is that of its port."""
    counts = {"NTASKS": 2, "NNODES": 2, "NTASKS_PER_NODE": 1, "PROCID": node, "NODEID": node, "LOCALID": 0}
    job = {"JOB_ID": 7_000_000 + place - SLURM_PORTS, "JOB_NAME": "fit", "NODELIST": "127.0.0.1"}
    return {f"SLURM_{name}": str(value) for name, value in (counts | job).items()}


def test_two_nodes_leave_the_bytes_of_one_process_and_one_of_them_speaks(tiny, make, tmp_path):
    words = [*tiny, *SMALL, f"outputs={tmp_path / 'two'}"]
    first, second = nodes(words)
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert first[1].count(" fit: making") == 1 and second[1] == ""
    make(*SMALL, f"outputs={tmp_path / 'one'}")
    assert_same_stores(tmp_path / "one", tmp_path / "two")


def test_two_tasks_of_slurm_leave_the_sensitivities_of_one_process(tiny, make, tmp_path):
    """Sixteen samples go backwards together, so that of twenty each task has a chunk."""
    words = ["goal=plan", "bitwidth=budget", "bitwidth.saving=20", "bitwidth.activations=[3,8]"]
    words += ["sensitivity.images=20", "noise.images=20"]
    place = port()
    commands = [(quick([*tiny, *words, f"outputs={tmp_path / 'two'}"]), slurms(node, place)) for node in range(2)]
    first, second = started_commands(tmp_path, *commands)
    assert first[0] == second[0] == 0, first[2] + second[2]
    make(*words, f"outputs={tmp_path / 'one'}")
    assert len(list(tmp_path.glob("two/store/changes/*/chunks/*.safetensors"))) > 1
    assert_same_stores(tmp_path / "one", tmp_path / "two")


def assert_same_stores(*outputs):
    single, shared = map(contents, outputs)
    assert shared.keys() == single.keys()
    assert [name for name in single if single[name] != shared[name]] == []


@pytest.mark.parametrize(
    ("variables", "others", "remedy"),
    [
        (slurms, [[], ["sampler.eta=0"]], "sampler.eta = 1.0 on rank 0 and 0 on rank 1"),
        (torchruns, [["runtime.devices=2"]] * 2, "leave runtime.devices out"),
    ],
    ids=["another option", "an error of both"],
)
def test_what_is_refused_is_refused_in_one_line(tiny, tmp_path, variables, others, remedy):
    words = [*tiny, *SMALL, f"outputs={tmp_path / 'outputs'}"]
    place = port()
    commands = [(quick([*words, *more]), variables(node, place)) for node, more in enumerate(others)]
    first, second = started_commands(tmp_path, *commands)
    assert first[0] == 1 and second[0] == 0 and "error" not in second[2], second[2][-3000:]
    (line,) = [line for line in first[2].splitlines() if line.startswith("error: ")]
    assert_clear(line, remedy)
    assert "Traceback" not in first[2] + second[2] and not (tmp_path / "outputs" / "store").exists()


def test_tasks_of_slurm_without_a_number_for_each_node_are_refused(monkeypatch):
    for name, value in slurms(0, SLURM_PORTS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match="--ntasks=2 alone; start with srun --nodes=N --ntasks-per-node=M"):
        Ranks.found("cpu")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert Ranks.found("cpu") is None
