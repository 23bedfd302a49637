"""Kill runs at random moments and compare what they end with: python experiments/kill_test/kill.py FOLDER [KILLS].

With `kill.py FOLDER KILLS torchrun` reports are made by two processes that torchrun starts on the loopback address.
"""

import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from PIL import Image
from rich.console import Console

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.experiment import run

TRAINING = ["training.batch_size=8", "training.warmup=2", "training.cooldown=2", "training.checkpoint_every=4"]
BLOCKS = "training.network.block_out_channels=[8,8]", "training.network.attention_head_dim=8"
JOBS = {
    "report": ["model=diffusers", "model.path=model", "sampler.steps=6", "images=20", "seeds=[0,1]", "micro_batch=4"]
    + ["calibration.images=8", "noise.images=16", "judging.replicates=20"],
    "train_denoiser": ["experiment=train_denoiser", "data.folder=data", "training.network.sample_size=16", *BLOCKS]
    + ["training.network.down_block_types=[DownBlock2D,DownBlock2D]", "training.steps=30", *TRAINING]
    + ["training.network.up_block_types=[UpBlock2D,UpBlock2D]"],
    "train_feature_network": ["experiment=train_feature_network", "data.folder=data", "training.steps=40", *TRAINING]
    + ["training.network.widths=[4,4,8,8]"],
    "reference_statistics": ["experiment=reference_statistics", "data.folder=data"],
}
UNCOUNTED = ("files.json", "log.txt")
WEIGHTS = {"report": 30, "train_denoiser": 9, "train_feature_network": 9, "reference_statistics": 2}
ALWAYS = ["runtime.accelerator=cpu", "runtime.progress=false", "logger=none", "outputs=outputs"]
SEED = 0
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", "--master-port=29517"]
SHARED = ["correction=rescaled_readout_matched", "images=140", "micro_batch=20", "calibration.images=40"]
SHARED += ["noise.images=60", "feature=pixels"]
"""Options of the report by which every stage that is shared has several chunks, and judging two batches."""
VICTIMS = ("0", "1", "all")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
PATIENCE = 600
"""Seconds within which processes must end when one of them was killed."""


def prepare(folder: Path) -> None:
    """A tiny DDPM with random weights, and 64 images of noise in two classes."""
    torch.manual_seed(SEED)
    blocks: dict[str, object] = {"block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
    blocks |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, "norm_num_groups": 4}
    unet = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for split, count in (("train", 64), ("test", 16)):
        cells = []
        for _ in range(count):
            encoded = io.BytesIO()
            Image.fromarray(torch.randint(256, (16, 16, 3)).byte().numpy()).save(encoded, "png")
            cells.append({"bytes": encoded.getvalue(), "path": None})
        table = pyarrow.table({"img": cells, "label": [i % 2 for i in range(count)]})
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")


def composed(overrides: list[str]) -> DictConfig:
    """What the command line would compose."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*overrides, *ALWAYS], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def started(cfg: DictConfig, folder: Path) -> int:
    """A process of its own that makes the goal in `folder`; it is forked, so that nothing is imported twice."""
    child = os.fork()
    if child:
        return child
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    try:
        run(cfg)
        os._exit(0)
    finally:
        os._exit(1)


def ended(child: int, folder: Path) -> float:
    """Wait for a process that must end well; the seconds it took from now."""
    begin = time.perf_counter()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError(f"expected the run in {folder} to end well; read said.txt there")
    return time.perf_counter() - begin


def fresh(folder: Path, name: str) -> Path:
    """A folder that sees the model and the images under the same names as every other."""
    made = folder / name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for shared in ("model", "data"):
        (made / shared).symlink_to(folder / shared)
    return made


def contents(folder: Path) -> Mapping[str, str]:
    """Hashes of every file of the store and the report, but for where the report comes from.

    Neither locks, nor how long a stage took, nor the logs of what was said and how a training went, nor the manifests,
    which hold its size.
    """
    outputs = folder / "outputs"
    files = (path for path in outputs.rglob("*") if path.is_file() and "log" not in path.parts)
    kept = (path for path in files if path.suffix not in (".lock", ".seconds") and path.name not in UNCOUNTED)
    return {str(path.relative_to(outputs)): hashlib.sha256(content(path)).hexdigest() for path in kept}


def content(path: Path) -> bytes:
    """The bytes of a file; those of a report without its provenance, which names the time."""
    if path.name != "report.json":
        return path.read_bytes()
    return json.dumps(json.loads(path.read_text()) | {"provenance": None}).encode()


def killed(cfg: DictConfig, folder: Path, moment: float) -> str | None:
    """Kill a run after `moment` seconds; what was under way, or None if the run had ended."""
    child = started(cfg, folder)
    time.sleep(moment)
    if os.waitpid(child, os.WNOHANG)[0]:
        return None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return under_way(folder)


def under_way(folder: Path) -> str:
    """The stages whose artefacts were begun and not finished."""
    return ", ".join(sorted(path.parent.name for path in folder.glob("outputs/store/*/*.partial"))) or "between stages"


def trial(cfg: DictConfig, folder: Path, moment: Callable[[], float], expected: Mapping[str, str]) -> dict[str, object]:
    """One kill that fell into the run, and the same command again."""
    while True:
        place, after = fresh(folder, "killed"), moment()
        if during := killed(cfg, place, after):
            break
    ended(started(cfg, place), place)
    found = contents(place)
    return {"seconds": f"{after:.2f}", "during": during, "files": len(found), "identical": found == expected}


def commanded(folder: Path, *launcher: str) -> subprocess.Popen[bytes]:
    """The command line that makes a report in `folder`, its processes in a session of their own."""
    options = {word.partition("=")[0]: word for word in [*JOBS["report"], *SHARED]}.values()
    words = [sys.executable, *launcher, "-m", "ptq_diffusion", *options, *ALWAYS]
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            words, cwd=folder, stdout=said, stderr=said, env=os.environ | ONE_THREAD, start_new_session=True
        )


def ends(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Wait for a command that must end well; the seconds from its first artefact on."""
    begin = begun(process, folder)
    if process.wait() != 0:
        raise RuntimeError(f"expected the run in {folder} to end well; read said.txt there")
    return time.perf_counter() - begin


def begun(process: subprocess.Popen[bytes], folder: Path) -> float:
    """Wait until a command has begun its first artefact; the time of it."""
    while process.poll() is None and not (folder / "outputs" / "store").is_dir():
        time.sleep(0.02)
    return time.perf_counter()


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


def trial_of_ranks(folder: Path, draw: random.Random, last: float, expected: Mapping[str, str]) -> dict[str, object]:
    """One kill of a rank, or of all processes at once, and the same command again."""
    victim, after = draw.choice(VICTIMS), draw.uniform(0, last)
    place = fresh(folder, "killed")
    process = commanded(place, *TORCHRUN)
    begun(process, place)
    time.sleep(after)
    if process.poll() is None:
        ranks = ranks_of(process.pid)
        for killed_now in [process.pid, *ranks.values()] if victim == "all" else [ranks[int(victim)]]:
            os.kill(killed_now, signal.SIGKILL)
    if process.wait(PATIENCE) == 0:
        return trial_of_ranks(folder, draw, last, expected)
    during = under_way(place)
    ends(commanded(place, *TORCHRUN), place)
    found = contents(place)
    told = {"victim": victim, "seconds": f"{after:.2f}", "during": during}
    return told | {"files": len(found), "identical": found == expected}


def kill_ranks(folder: Path, kills: int, say: Callable[[str], None]) -> None:
    """Run a report whole in one process, then kill two of torchrun, KILLS times; kills_torchrun.csv has each."""
    draw, whole = random.Random(SEED), fresh(folder, "whole")
    ends(commanded(whole), whole)
    expected = contents(whole)
    shared = fresh(folder, "shared")
    last = ends(commanded(shared, *TORCHRUN), shared)
    say(f"two ranks without a kill, {last:.1f} s: identical: {contents(shared) == expected}")
    with (Path(__file__).parent / "kills_torchrun.csv").open("w", newline="", buffering=1) as file:
        names = ["kill", "victim", "seconds", "during", "files", "identical"]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for number in range(1, kills + 1):
            found = trial_of_ranks(folder, draw, last, expected)
            writer.writerow({"kill": number, **found})
            say(f"{number}: killed {found['victim']} in {found['during']}, identical: {found['identical']}")


def main() -> None:
    """Run every job whole, then kill and go on, KILLS times in all (50 unless told); kills.csv beside this has each."""
    say = Console(soft_wrap=True, highlight=False).print
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else sum(WEIGHTS.values())
    prepare(folder)
    if sys.argv[3:] == ["torchrun"]:
        kill_ranks(folder, kills, say)
        return
    draw = random.Random(SEED)
    cfgs = {job: composed(overrides) for job, overrides in JOBS.items()}
    wholes = {job: fresh(folder, f"whole_{job}") for job in JOBS}
    lasts = {job: ended(started(cfg, wholes[job]), wholes[job]) for job, cfg in cfgs.items()}
    expected = {job: contents(whole) for job, whole in wholes.items()}
    jobs = [job for job, weight in WEIGHTS.items() for _ in range(weight)]
    with (Path(__file__).parent / "kills.csv").open("w", newline="", buffering=1) as file:
        writer = csv.DictWriter(file, ["kill", "job", "seconds", "during", "files", "identical"], lineterminator="\n")
        writer.writeheader()
        for number, job in enumerate(draw.sample(jobs, len(jobs))[:kills], 1):
            found = trial(cfgs[job], folder, partial(draw.uniform, 0, lasts[job]), expected[job])
            writer.writerow({"kill": number, "job": job, **found})
            say(f"{number} {job}: killed in {found['during']}, identical: {found['identical']}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
