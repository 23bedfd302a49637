"""Peak memory of every stage by the number of images and of pixels: python experiments/memory/measure.py FOLDER.

Each stage runs in a process of its own, forked from one that has everything imported. The system tells the largest
resident set when it ends; the part of it that is anonymous, which files in memory are not, is read every few
milliseconds.
"""

import csv
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from omegaconf import DictConfig
from rich.console import Console

import ptq_diffusion as pd
from ptq_diffusion.command.experiment import run

STEPS = 3
RESCALED = "correction=rescaled_matched"
STAGES: Mapping[str, tuple[str, ...]] = {
    "trajectories": ("goal=trajectories",),
    "calibrate": ("goal=calibrate",),
    "quantize": ("goal=quantize",),
    "float_path": ("goal=float_path",),
    "noise": ("goal=noise",),
    "fit of ptqd": ("goal=fit", "correction=ptqd"),
    "fit of rescaled_matched": ("goal=fit", RESCALED),
    "samples_full_precision": ("goal=samples_full_precision",),
    "samples_quantized": ("goal=samples_quantized",),
    "samples_corrected": ("goal=samples_corrected", RESCALED),
    "drift": ("goal=drift", RESCALED),
    "evaluate": ("goal=evaluate", RESCALED),
}
"""The words of every stage; what one needs is made by those before, but for sets and plans, which are small."""


@dataclass(frozen=True)
class Case:
    """A number of images of one size.

    Args:
        images: of calibration, of the fit and of each variant that is judged.
        side: pixels of a row.
        micro_batch: images that are computed together.
    """

    images: int
    side: int
    micro_batch: int = 64


BASE, FEW, MANY, LARGE, LARGER = Case(16, 8, 4), Case(256, 32), Case(1024, 32), Case(256, 64), Case(256, 128)
"""Next to no images, so that little but the process itself is left; some; four times as many; four times the pixels,
and four times again."""
KINDS = ("resident", "anonymous")


def prepare(folder: Path, side: int) -> None:
    """Write a tiny DDPM with random weights: small networks, but states as large as those of real ones."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=side,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)


def words(case: Case, folder: Path) -> list[str]:
    """The options that all stages of a case share."""
    options = [f"{option}={case.images}" for option in ("images", "calibration.images", "noise.images")]
    options += ["model=diffusers", f"model.path={folder / 'model'}", f"sampler.steps={STEPS}", "feature=cifar10net"]
    options += ["reference=cifar10"]
    options += ["seeds=[0]", f"micro_batch={case.micro_batch}", "judging.replicates=20", "logger=none"]
    return [*options, "runtime.accelerator=cpu", "runtime.progress=false", f"outputs={folder / 'outputs'}"]


def peak(options: list[str]) -> Mapping[str, float]:
    """MiB that a process held at most, by kind; it is forked, so that it begins with everything imported.

    Raises:
        RuntimeError: it ended with an error.
    """
    cfg, child = pd.compose(*options), os.fork()
    if not child:
        made(cfg)
    anonymous = 0
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        held = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{child}/status").read_text())
        anonymous = max(anonymous, int(held[1]) if held else 0)
        time.sleep(0.005)
    if status != 0:
        raise RuntimeError(f"expected {cfg.goal} to end well, got status {status} in {cfg.outputs}")
    return {"resident": usage.ru_maxrss / 1024, "anonymous": anonymous / 1024}  # both KiB on Linux


def made(cfg: DictConfig) -> NoReturn:
    """Make the goal in this process, which ends with it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        run(cfg)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def peaks(case: Case, folder: Path) -> Mapping[str, Mapping[str, float]]:
    """MiB that every stage of a case held at most, by stage and kind."""
    prepare(folder / "model", case.side)
    shared = words(case, folder)
    return {stage: peak([*shared, *goal]) for stage, goal in STAGES.items()}


def main() -> None:
    """Print a line for each stage and kind and write memory.csv beside this."""
    say = Console(soft_wrap=True, highlight=False).print
    folder = Path(sys.argv[1]).resolve()
    cases = (BASE, FEW, MANY, LARGE, LARGER)
    found = [peaks(case, folder / f"{case.images}_of_{case.side}") for case in cases]
    sizes = [f"MiB of {case.images} of {case.side}x{case.side}" for case in cases]
    rows = [["stage", "memory", *sizes, "images", "pixels", "pixels again"]]
    for stage in STAGES:
        for kind in KINDS:
            base, few, many, large, larger = (peaks_of_case[stage][kind] for peaks_of_case in found)
            ratios = many / few, (large - base) / (few - base), (larger - base) / (large - base)
            held = (f"{size:.1f}" for size in (base, few, many, large, larger))
            rows.append([stage, kind, *held, *(f"{ratio:.3f}" for ratio in ratios)])
    for row in rows:
        say(", ".join(row))
    with (Path(__file__).parent / "memory.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
