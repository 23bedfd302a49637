"""Four jobs at once go through the same 20 cells, each in another order, and share a store; then one job alone.

Prints how often each artefact was made, and whether the serial run's files have the same bytes. A tiny random network.
"""

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from rich.console import Console

from ptq_diffusion.engine.store import LOCKED, SECONDS

JOBS = 4
CELLS = list(itertools.product(("w8a8", "w4a8", "w4a6", "w4a4", "w2a8"), ("0", "1"), ("ptqd", "bias")))
SMALL = (
    "goal=evaluate judging.replicates=5 sampler.steps=3 images=8 seeds=[0,1] micro_batch=4 calibration.images=4 "
    "noise.images=8 runtime.accelerator=cpu runtime.progress=false logger=none model=diffusers"
).split()
ONE_JOB = """
import sys
import ptq_diffusion as pd
for line in sys.stdin:
    pd.make(pd.compose(*line.split()))
"""


def tiny_model(folder: Path) -> None:
    """A DDPM with random weights as a stock pipeline saves it."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)


def go_through(cells: Sequence[Sequence[str]], model: Path, outputs: Path) -> subprocess.Popen[str]:
    """A process that runs the cells one after the other; what it says lies in a file beside its outputs."""
    process = subprocess.Popen(
        [sys.executable, "-c", ONE_JOB],
        stdin=subprocess.PIPE,
        stdout=outputs.with_name(f"{outputs.name}-{random.getrandbits(32)}.log").open("w"),
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = [
        f"bitwidth={bits} sampler.eta={eta} correction={name} {' '.join(SMALL)} model.path={model} outputs={outputs}"
        for bits, eta, name in cells
    ]
    assert process.stdin is not None
    process.stdin.write("\n".join(lines))
    process.stdin.close()
    return process


def made(outputs: Path) -> Counter[tuple[str, str]]:
    """How often each (stage, signature) was made, by what the jobs said."""
    said = "".join(path.read_text() for path in outputs.parent.glob(f"{outputs.name}-*.log"))
    return Counter(re.findall(r"(\w+): making (\w+)", said))


def digests(outputs: Path) -> dict[str, str]:
    """The hash of every file in the store, apart from locks and times."""
    store = outputs / "store"
    files = [path for path in store.rglob("*") if path.is_file() and path.suffix not in (LOCKED, SECONDS)]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    """Both runs and what they show."""
    root = Path(tempfile.mkdtemp(prefix="store_test-"))
    tiny_model(root / "model")
    found: dict[str, object] = {"jobs": JOBS, "cells of each": len(CELLS)}
    for name, jobs in (("parallel", JOBS), ("serial", 1)):
        start = time.monotonic()
        orders = [random.Random(job).sample(CELLS, len(CELLS)) for job in range(jobs)]
        codes = [process.wait() for process in [go_through(order, root / "model", root / name) for order in orders]]
        count = made(root / name)
        found[name] = {
            "exit codes": codes,
            "artefacts": len({path.rpartition("/")[0].split("/chunks")[0] for path in digests(root / name)}),
            "made once": sum(times == 1 for times in count.values()),
            "made more often": sum(times > 1 for times in count.values()),
            "unfinished": len(list((root / name).rglob("*.partial"))) + len(list((root / name).rglob("*.tmp"))),
            "seconds": round(time.monotonic() - start),
        }
    parallel, serial = (digests(root / name) for name in ("parallel", "serial"))
    found |= {"files": len(serial), "files with equal bytes": sum(serial[p] == parallel.get(p) for p in serial)}
    found["files of one run only"] = len(set(serial) ^ set(parallel))
    Console().print_json(json.dumps(found))


if __name__ == "__main__":
    main()
