"""Forces every fit anew in processes of different environments, and compares the bytes.

    python experiments/bit_identity/fits.py FOLDER_OF_A_MODEL [PROCESSES]

The environment lies in front of a process's memory, so that its length moves what comes after; the C library is told
to take memory from the heap or in pages of its own, and to fill it with another byte each; and Python hashes by another
seed. A routine whose last bits depend on where its operands lie, on memory that nothing was written to, or on the order
of a set gives other bytes in some of the processes.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ptq_diffusion.command.conf import CONF

ROOT = Path(__file__).parents[2]
WORDS = (
    "goal=fit model=diffusers sampler.steps=3 micro_batch=4 calibration.images=4 noise.images=16 trial.images=4 "
    "runtime.accelerator=cpu runtime.progress=false logger=none"
).split()
STEP = 24
"""Characters by which the environments of two processes differ: no multiple of a vector register."""
PAGES = (4_096, 131_072, 1 << 30)
"""Bytes from which the C library gives an allocation pages of its own: nearly all, some, none."""
ONE_PROCESS = """
import sys
import ptq_diffusion as pd
for line in sys.stdin:
    pd.make(pd.compose(*line.split()))
"""


def corrections() -> list[str]:
    """Every correction that is fitted by itself."""
    return sorted({path.stem for path in (CONF / "correction").glob("*.yaml")} - {"auto", "none"})


def forced(names: Sequence[str], words: Sequence[str], place: int) -> Mapping[str, str]:
    """Fit some corrections in a new process; the digests of their files by correction.

    Args:
        names: of the corrections.
        words: the model, the outputs and all else that the command line says.
        place: of the process among all, by which its surroundings differ.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **surroundings(place)}
    lines = [" ".join([*WORDS, *words, f"correction={name}", "force=fit"]) for name in names]
    run = [sys.executable, "-W", "ignore", "-c", ONE_PROCESS]
    done = subprocess.run(run, input="\n".join(lines), env=environment, capture_output=True, text=True, check=False)
    folders = [Path(line) for line in done.stdout.splitlines() if "/store/fit/" in line]
    if done.returncode or len(folders) != len(names):
        raise RuntimeError(f"expected {len(names)} fits, got {len(folders)}: {done.stderr[-2000:]}")
    return {name: _digest(folder) for name, folder in zip(names, folders, strict=True)}


def surroundings(place: int) -> Mapping[str, str]:
    """The variables by which one process differs from the others; results may depend on none of them."""
    return {
        "MOVED": "x" * STEP * place,
        "PYTHONHASHSEED": str(place),
        "MALLOC_MMAP_THRESHOLD_": str(PAGES[place % len(PAGES)]),
        "MALLOC_PERTURB_": str(1 + place),
    }


def several(names: Sequence[str], words: Sequence[str], processes: int) -> Mapping[str, set[str]]:
    """The digests of every correction that several processes came to; one digest each where all bits are the same."""
    *_, digests = gathered(names, words, processes)
    return digests


def gathered(names: Sequence[str], words: Sequence[str], processes: int) -> Iterator[Mapping[str, set[str]]]:
    """The same after every process."""
    digests: dict[str, set[str]] = {name: set() for name in names}
    for place in range(processes):
        for name, digest in forced(names, words, place).items():
            digests[name].add(digest)
        yield digests


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def main(folder: Path, processes: int) -> None:
    """Print the number of different results of every correction."""
    words = [f"model.path={folder}", f"outputs={folder / 'outputs'}"]
    for count, digests in enumerate(gathered(corrections(), words, processes), 1):
        total = sum(len(different) > 1 for different in digests.values())
        sys.stdout.write(f"{count} of {processes} processes: {len(digests)} corrections, {total} not bit-identical\n")
        sys.stdout.flush()
    for name, different in digests.items():
        sys.stdout.write(f"{name}: {processes} fits, {len(different)} different\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
