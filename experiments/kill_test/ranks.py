"""Kills one or both of two processes that torchrun started within every stage that they share, and lets them go on.

    python -m experiments.kill_test.ranks FOLDER

The processes have one thread each and meet on the loopback address. The kill falls as `kill` has it.
"""

import csv
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from experiments.kill_test.jobs import (
    ALWAYS,
    BUDGET,
    FEW_CANDIDATES,
    SEED,
    TINY,
    TRIES,
    artefacts,
    compared,
    contents,
    fresh,
    landed,
    prepare,
    wait_for,
)

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port=29517"]
CHUNKS = ["images=140", "micro_batch=20", "calibration.images=40", "noise.images=60", "sensitivity.images=32"]
CHUNKS += ["trial.images=40", "layers.images=8", "feature=pixels"]
"""Words by which every stage that is shared has several chunks, and judging two batches."""
JOBS = {
    "report": [*TINY, *CHUNKS, *BUDGET, *FEW_CANDIDATES, "calibration_set=density", "calibration_set.images=40"],
    "step_snr": [*TINY, *CHUNKS, "goal=plan", "bitwidth=step_snr"],
}
SHARED = {
    "report": ("trajectories", "calibration_set", "calibrate", "float_path", "changes", "noise", "fit")
    + ("samples_full_precision", "samples_quantized", "samples_corrected", "drift", "layers", "evaluate"),
    "step_snr": ("step_signal",),
}
"""The stages that ranks share, by job."""
VICTIMS = ("0", "1", "all")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
PATIENCE = 600
"""Seconds within which processes must end when one of them was killed."""
COLUMNS = ("kill", "job", "stage", "victim", "seconds", "fell_in", "at_work", "files_left", "files", "identical")


def main() -> None:
    """Run both jobs whole, in one process and in two, then kill and go on; kills_torchrun.csv has each kill."""
    say = Console(soft_wrap=True, highlight=False).print
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    prepare(folder)
    with (Path(__file__).parent / "kills_torchrun.csv").open("w", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for number, row in enumerate(kills(folder), 1):
            writer.writerow({"kill": number, **row})
            say(", ".join(f"{name} {value}" for name, value in {"kill": number, **row}.items()))


def kills(folder: Path) -> Iterator[dict[str, object]]:
    """One kill within every stage that is shared, of rank 0, of rank 1 and of all processes in turn.

    Raises:
        RuntimeError: a run without a kill ends with an error, or two processes leave other bytes than one.
    """
    draw, victims = random.Random(SEED), itertools.cycle(VICTIMS)
    for job, stages in SHARED.items():
        places = [fresh(folder, f"whole_{job}"), fresh(folder, f"shared_{job}")]
        for place, launcher in zip(places, ((), TORCHRUN), strict=True):
            if commanded(job, place, *launcher).wait():
                raise RuntimeError(f"expected the run in {place} to end well; read said.txt there")
        expected, shared = map(contents, places)
        if shared != expected:
            raise RuntimeError(f"expected the same bytes in {places[0]} and {places[1]}, got others; compare them")
        for stage in stages:
            victim, durations = next(victims), artefacts(places[1])[stage]
            for _ in range(TRIES):
                row = trial(folder, (job, stage, victim), draw, durations, expected)
                yield row
                if row["at_work"]:
                    break


def trial(
    folder: Path,
    aim: tuple[str, str, str],
    draw: random.Random,
    durations: Mapping[str, float],
    expected: Mapping[str, str],
) -> dict[str, object]:
    """One kill that falls into a run, and the same command again.

    Args:
        folder: of all runs.
        aim: the job, the stage and who is killed.
        draw: chooses the artefact and the moment.
        durations: the seconds that the stage's artefacts took, by signature.
        expected: the hashes of all files without a kill.
    """
    job, stage, victim = aim
    signature = draw.choice(sorted(durations))
    place, seconds = fresh(folder, "killed"), draw.uniform(0, durations[signature])
    process = commanded(job, place, *TORCHRUN)
    wait_for(place, stage, signature, lambda: process.poll() is None)
    time.sleep(seconds)
    strike(process, victim)
    # Before the other rank notices and goes on or ends.
    row = {"job": job, "stage": stage, "victim": victim, "seconds": f"{seconds:.3f}"} | landed(place, stage, signature)
    if process.wait(PATIENCE) == 0:
        return trial(folder, aim, draw, durations, expected)
    return row | compared(place, expected, commanded(job, place, *TORCHRUN).wait() == 0)


def strike(process: "subprocess.Popen[bytes]", victim: str) -> None:
    """Kill a rank of a torchrun, or all and torchrun itself at once; one that has ended is left."""
    if process.poll() is None:
        ranks = {str(rank): number for rank, number in ranks_of(process.pid).items()}
        struck = [process.pid, *ranks.values()] if victim == "all" else [ranks[victim]] * (victim in ranks)
        for number in struck:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def commanded(job: str, folder: Path, *launcher: str) -> "subprocess.Popen[bytes]":
    """The command line that does a job in `folder`, its processes in a session of their own."""
    options = {word.partition("=")[0]: word for word in JOBS[job]}.values()
    words = [sys.executable, *launcher, "-m", "ptq_diffusion", *options, *ALWAYS]
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            words, cwd=folder, stdout=said, stderr=said, env=os.environ | ONE_THREAD, start_new_session=True
        )


def ranks_of(agent: int) -> Mapping[int, int]:
    """The processes that torchrun started, by their rank."""
    children = " ".join(file.read_text() for file in Path(f"/proc/{agent}/task").glob("*/children")).split()
    variables = {int(child): Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    return {
        int(variable.removeprefix(b"RANK=")): child
        for child, given in variables.items()
        for variable in given
        if variable.startswith(b"RANK=")
    }


if __name__ == "__main__":
    main()
