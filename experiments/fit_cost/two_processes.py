"""Wall time of fits by one process and by two of one thread each, and whether their files are the same.

    OMP_NUM_THREADS=1 python experiments/fit_cost/two_processes.py FOLDER [ROUNDS]

Both ways to have two are tried: `runtime.devices=2`, which starts them within the stage, and torchrun, which starts
them before it. The ways take turns. The time is that of the stages, as the store keeps it; how long two processes take
to start and do nothing is measured beside it. The machine must have two cores with nothing else to do.
"""

import csv
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lightning import Fabric
from rich.console import Console

from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.store import SECONDS
from ptq_diffusion.stage.fit import Fit

WORDS: tuple[str, ...] = ("goal=fit", "sampler.steps=5", "bitwidth=w4a8", "calibration.images=16", "noise.images=256")
WORDS += ("runtime.accelerator=cpu", "runtime.progress=false", "logger=none")
MADE_OF = {"rescaled_matched": ("fit",), "ptqd": ("noise", "fit")}
"""Corrections, and the stages that fit them beside those that all corrections share."""
TORCHRUN = ("torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port=29518", "-m")
ONE, DEVICES, RANKS = "one process", "runtime.devices=2", "torchrun of two"
WAYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    ONE: ((), ("runtime.devices=1",)),
    DEVICES: ((), ("runtime.devices=2",)),
    RANKS: (TORCHRUN, ()),
}
"""The launcher and the words of every way."""
GOAL = 0.6
"""The largest share of the time of one process that two may take."""


def nothing(fabric: Fabric, stage: type[Stage]) -> None:  # noqa: ARG001
    """Meet the other process, once all is imported that a stage needs."""
    fabric.barrier()


def start_up() -> float:
    """Seconds that two processes take to start, to import what a fit needs, to meet and to end."""
    since = time.perf_counter()
    Runtime("cpu", progress=False, devices=2).launch(partial(nothing, stage=Fit), tasks=2)
    return time.perf_counter() - since


def fitted(folder: Path, correction: str, way: str) -> tuple[float, str]:
    """The seconds that the stages of a fit take, and the digest of what they leave; what is shared is there already."""
    stages = [folder / "outputs" / "store" / stage for stage in MADE_OF[correction]]
    for stage in stages:
        shutil.rmtree(stage, ignore_errors=True)
    commanded(folder, correction, way)
    files = [file for stage in stages for file in sorted(stage.glob("*/**/*")) if file.is_file()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return sum(float(file.read_text()) for stage in stages for file in stage.glob(f"*{SECONDS}")), digest.hexdigest()


def commanded(folder: Path, correction: str, way: str) -> None:
    """Fit a correction in a way; said.txt has what is said."""
    launcher, words = WAYS[way]
    command = [sys.executable, "-m", *launcher, "ptq_diffusion", *WORDS, *words, f"correction={correction}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "said.txt").open("a") as said:
        subprocess.run(
            [*command, f"outputs={folder / 'outputs'}"], env=environment, stdout=said, stderr=said, check=True
        )


def rows(
    seconds: Mapping[tuple[str, str], list[float]], digests: Mapping[str, set[str]], starts: list[float]
) -> list[list[str]]:
    """A row for each correction and way: medians, ratios to one process, whether all rounds of all ways are alike."""
    found = [["correction", "processes", "seconds", "ratio", "ratio without start-up", f"at most {GOAL}", "identical"]]
    for (correction, way), taken in seconds.items():
        middle, one = statistics.median(taken), statistics.median(seconds[correction, ONE])
        worked = middle - (statistics.median(starts) if way == DEVICES else 0.0)
        numbers = [f"{middle:.2f}", f"{middle / one:.3f}", f"{worked / one:.3f}"]
        found.append([correction, way, *numbers, str(worked / one <= GOAL), str(len(digests[correction]) == 1)])
    return found


def main() -> None:
    """Print a line for each correction and way and write two_processes.csv beside this."""
    say = Console(soft_wrap=True, highlight=False).print
    quiet_libraries()
    folder, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    folder.mkdir(parents=True)
    seconds: dict[tuple[str, str], list[float]] = {(name, way): [] for name in MADE_OF for way in WAYS}
    digests: dict[str, set[str]] = {name: set() for name in MADE_OF}
    starts: list[float] = []
    for correction in MADE_OF:
        commanded(folder, correction, ONE)  # what all share
    for _ in range(rounds):
        starts.append(start_up())
        for (correction, way), taken in seconds.items():
            spent, digest = fitted(folder, correction, way)
            taken.append(spent)
            digests[correction].add(digest)
    say(f"two processes start in {statistics.median(starts):.2f} s")
    found = rows(seconds, digests, starts)
    for row in found:
        say(", ".join(row))
    with (Path(__file__).parent / "two_processes.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(found)


if __name__ == "__main__":
    main()
