"""Parallel jobs share the store: each artefact is made once, with the bytes of a serial run; a failure stays alone."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDS = {"processes": "hydra_plugins.hydra_joblib_launcher", "submitit": "hydra_plugins.hydra_submitit_launcher"}
SWEEP = ["goal=evaluate", "sampler=ddpm", "correction=none,ptqd,ptqd_release"]
"""The last correction is refused, which needs another sampler."""


def artefacts(outputs):
    store = outputs / "store"
    return {
        path.relative_to(store): path.read_bytes()
        for path in store.rglob("*")
        if path.suffix not in (".lock", ".seconds") and path.is_file()
    }


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The folder of outputs of a serial run, made once."""
    return tmp_path_factory.mktemp("serial")


@pytest.mark.parametrize("launcher", NEEDS)
def test_two_processes_make_what_one_makes(launcher, tiny, make, serial, tmp_path):
    pytest.importorskip(NEEDS[launcher], reason="pip install '.[parallel,slurm]'")
    outputs = tmp_path / "parallel"
    command = [
        sys.executable,
        "-m",
        "ptq_diffusion",
        "-m",
        *tiny,
        *SWEEP,
        f"outputs={outputs}",
        f"hydra/launcher={launcher}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "1 failed" in ended.stdout, ended.stderr
    logs = [path.read_text() for path in outputs.rglob("*_log.out")]
    made = Counter(re.findall(r"(\w+): making (\w+)", "".join([ended.stdout, *logs])))
    assert set(made.values()) == {1}, "no artefact is made twice"
    twice = {stage for stage, count in Counter(stage for stage, _ in made).items() if count == 2}
    assert twice == {"fit", "samples_corrected", "drift", "evaluate"}, (
        "what depends on the correction is each job's own"
    )
    for correction in ("none", "ptqd"):
        make("goal=evaluate", "sampler=ddpm", f"correction={correction}", f"outputs={serial}")
    assert artefacts(outputs) == artefacts(serial)
    assert len(list(outputs.glob("runs/*/failure.json"))) == 1


@pytest.mark.parametrize("module", ["command.sweep", "engine.run_files", "main"])
def test_a_worker_sets_its_threads_before_torch_counts_them(module):
    """Hydra sets OMP_NUM_THREADS when a job starts; what a worker imports for that must not import torch yet."""
    code = f"import sys, ptq_diffusion.{module}; sys.exit(bool({{'torch', 'lightning'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
