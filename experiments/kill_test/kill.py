"""Kills a job of one process within every stage in turn, lets it go on, and compares what it ends with.

    python -m experiments.kill_test.kill FOLDER

The stages come from the registry. The kill falls when the stage has begun, after a random share of the time that it
took without a kill; each one that falls elsewhere is counted too, and the stage is tried again, three times at most.
"""

import csv
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console

import ptq_diffusion as pd
from experiments.kill_test.jobs import (
    ALWAYS,
    GOAL,
    JOBS,
    SEED,
    TRIES,
    artefacts,
    compared,
    contents,
    fresh,
    landed,
    prepare,
    wait_for,
)
from ptq_diffusion.command.experiment import STAGES, run

AGAIN = {"fit": "report", "changes": "budget", "reconstruct": "blocks", "evaluate": "report", "calibrate": "budget"}
"""Stages that are killed once more, and the jobs in which they are."""
COLUMNS = ("kill", "job", "stage", "seconds", "fell_in", "at_work", "files_left", "files", "identical")


@dataclass(frozen=True)
class Whole:
    """A job that ran without a kill.

    Args:
        name: of the job.
        cfg: its configuration.
        artefacts: the seconds that each took, by stage and signature.
        contents: the hashes of all files.
    """

    name: str
    cfg: DictConfig
    artefacts: Mapping[str, Mapping[str, float]]
    contents: Mapping[str, str]


def main() -> None:
    """Run every job whole, then kill and go on; kills.csv beside this has each kill."""
    say = Console(soft_wrap=True, highlight=False).print
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    prepare(folder)
    wholes = [whole for name, words in JOBS.items() if (whole := undisturbed(folder, name, words))]
    for stage in STAGES:
        if not any(stage in whole.artefacts for whole in wholes) and (more := undisturbed(folder, stage, goal(stage))):
            wholes.append(more)
    if lost := [name for name in JOBS if name not in [whole.name for whole in wholes]]:
        raise RuntimeError(f"expected all jobs to end well, got an error of {', '.join(lost)}; read said.txt there")
    say(f"not covered: {', '.join(name for name in STAGES if not running(wholes, name)) or 'no stage'}")
    draw = random.Random(SEED)
    with (Path(__file__).parent / "kills.csv").open("w", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number, row in enumerate(kills(folder, wholes, draw), 1):
            writer.writerow({"kill": number, **row})
            say(", ".join(f"{name} {value}" for name, value in {"kill": number, **row}.items()))


def goal(stage: str) -> list[str]:
    """The words of a job for a stage that no other job runs."""
    return [*GOAL, f"goal={stage}"]


def running(wholes: Sequence[Whole], stage: str) -> list[Whole]:
    """The jobs that run a stage."""
    return [whole for whole in wholes if stage in whole.artefacts]


def undisturbed(folder: Path, name: str, words: list[str]) -> Whole | None:
    """The job without a kill; None where it ends with an error."""
    cfg, place = pd.compose(*words, *ALWAYS), fresh(folder, f"whole_{name}")
    process = started(cfg, place)
    process.join()
    return None if process.exitcode else Whole(name, cfg, artefacts(place), contents(place))


def kills(folder: Path, wholes: Sequence[Whole], draw: random.Random) -> Iterator[dict[str, object]]:
    """One kill within every stage, and those of `AGAIN`; more where one falls elsewhere."""
    aims = [(running(wholes, stage)[0], stage) for stage in STAGES if running(wholes, stage)]
    aims += [(whole, stage) for stage, job in AGAIN.items() for whole in wholes if whole.name == job]
    for whole, stage in aims:
        for _ in range(TRIES):
            row = trial(folder, whole, stage, draw)
            yield row
            if row["at_work"]:
                break


def trial(folder: Path, whole: Whole, stage: str, draw: random.Random) -> dict[str, object]:
    """One kill that falls into a run, and the same command again."""
    while True:
        signature = draw.choice(sorted(whole.artefacts[stage]))
        place, seconds = fresh(folder, "killed"), draw.uniform(0, whole.artefacts[stage][signature])
        process = started(whole.cfg, place)
        wait_for(place, stage, signature, process.is_alive)
        time.sleep(seconds)
        if process.is_alive():
            break
        process.join()
    process.kill()
    process.join()
    row = {"job": whole.name, "stage": stage, "seconds": f"{seconds:.3f}"} | landed(place, stage, signature)
    again = started(whole.cfg, place)
    again.join()
    return row | compared(place, whole.contents, again.exitcode == 0)


def started(cfg: DictConfig, folder: Path) -> ForkProcess:
    """A process of its own that makes the goal in `folder`; it is forked, so that nothing is imported twice."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(cfg, folder))
    process.start()
    return process


def work(cfg: DictConfig, folder: Path) -> None:
    """Make the goal; said.txt has what is said."""
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    run(cfg)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
