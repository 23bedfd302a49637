"""Wall time of fits by one process and by torchrun's two, of one thread each, and whether their files are the same.

    OMP_NUM_THREADS=1 python experiments/fit_cost/two_processes.py FOLDER [ROUNDS]

The ways take turns. The time is that of the stages, as the store keeps it, so that what processes take to start is no
part of it. The machine must have two cores with nothing else to do.
"""

import csv
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from ptq_diffusion.engine.store import SECONDS

WORDS: tuple[str, ...] = ("bitwidth=w4a8", "calibration.images=16", "noise.images=256")
WORDS += ("runtime.accelerator=cpu", "runtime.progress=false", "logger=none")
MADE_OF = {"rescaled_matched": ("fit",), "ptqd": ("noise", "fit")}
"""Corrections, and the stages that fit them beside those that all corrections share."""
SHARED = ("quantize", "float_path")
STEPS = (5, 20)
TORCHRUN = ("torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port=29518", "-m")
ONE, RANKS = "one process", "torchrun of two"
WAYS: Mapping[str, tuple[str, ...]] = {ONE: (), RANKS: TORCHRUN}
"""The launcher of every way."""
GOAL = 0.6
"""The largest share of the time of one process that two may take."""
Case = tuple[str, int]
"""A correction and a number of steps."""


def fitted(folder: Path, case: Case, way: str) -> tuple[float, str]:
    """The seconds that the stages of a fit take, and the digest of what they leave; what is shared is there already."""
    correction, steps = case
    stages = [folder / "outputs" / "store" / stage for stage in MADE_OF[correction]]
    for stage in stages:
        shutil.rmtree(stage, ignore_errors=True)
    commanded(folder, WAYS[way], "goal=fit", f"correction={correction}", f"sampler.steps={steps}")
    digest = hashlib.sha256()
    for file in (file for stage in stages for file in sorted(stage.glob("*/**/*")) if file.is_file()):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return sum(float(file.read_text()) for stage in stages for file in stage.glob(f"*{SECONDS}")), digest.hexdigest()


def commanded(folder: Path, launcher: tuple[str, ...], *words: str) -> None:
    """Give a command; said.txt has what is said."""
    command = [sys.executable, "-m", *launcher, "ptq_diffusion", *WORDS, *words, f"outputs={folder / 'outputs'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "said.txt").open("a") as said:
        subprocess.run(command, env=environment, stdout=said, stderr=said, check=True)


def rows(seconds: Mapping[tuple[Case, str], list[float]], digests: Mapping[Case, set[str]]) -> list[list[str]]:
    """A row for each case and way: medians, ratios to one process, whether all rounds of all ways are alike."""
    found = [["correction", "steps", "processes", "seconds", "ratio", f"at most {GOAL}", "identical"]]
    for (case, way), taken in seconds.items():
        # Of each round, whose ways follow each other.
        ratio = statistics.median(two / one for two, one in zip(taken, seconds[case, ONE], strict=True))
        numbers = [f"{statistics.median(taken):.2f}", f"{ratio:.3f}", str(ratio <= GOAL)]
        found.append([case[0], str(case[1]), way, *numbers, str(len(digests[case]) == 1)])
    return found


def main() -> None:
    """Print a line for each case and way and write two_processes.csv beside this."""
    say = Console(soft_wrap=True, highlight=False).print
    folder, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    folder.mkdir(parents=True)
    cases = [(correction, steps) for steps in STEPS for correction in MADE_OF]
    seconds: dict[tuple[Case, str], list[float]] = {(case, way): [] for case in cases for way in WAYS}
    digests: dict[Case, set[str]] = {case: set() for case in cases}
    for goal, steps in ((goal, steps) for goal in SHARED for steps in STEPS):
        commanded(folder, (), f"goal={goal}", "correction=ptqd", f"sampler.steps={steps}")
    for _ in range(rounds):
        for (case, way), taken in seconds.items():
            spent, digest = fitted(folder, case, way)
            taken.append(spent)
            digests[case].add(digest)
    found = rows(seconds, digests)
    for row in found:
        say(", ".join(row))
    with (Path(__file__).parent / "two_processes.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(found)


if __name__ == "__main__":
    main()
