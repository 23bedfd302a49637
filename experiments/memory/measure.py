"""Peak memory of calibration and noise statistics by the number of images: python experiments/memory/measure.py FOLDER.

Each stage runs in a process of its own, whose largest resident set the system tells when it ends.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from rich.console import Console

IMAGES = (256, 4096)
STEPS = 3
STAGES = ("trajectories", "calibrate", "noise")


def prepare(folder: Path) -> None:
    """A tiny DDPM of 32x32 images with random weights: small networks, but states as large as those of CIFAR-10."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)


def peak(stage: str, images: int, folder: Path) -> float:
    """MiB that the process of one stage held at most; what the stage needs was made before."""
    overrides = [f"goal={stage}", "model=diffusers", f"model.path={folder / 'model'}", f"sampler.steps={STEPS}"]
    overrides += [f"calibration.images={images}", f"noise.images={images}", "micro_batch=64", "logger=none"]
    overrides += ["runtime.accelerator=cpu", "runtime.progress=false", f"outputs={folder / 'outputs'}"]
    command = [sys.executable, "-m", "ptq_diffusion", *overrides]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"expected goal={stage} to end well")
    return usage.ru_maxrss / 1024  # KiB on Linux


def main() -> None:
    """Print a line for each stage and write memory.csv beside this."""
    say = Console(soft_wrap=True, highlight=False).print
    folder = Path(sys.argv[1]).resolve()
    prepare(folder / "model")
    found = {images: {stage: peak(stage, images, folder) for stage in STAGES} for images in IMAGES}
    few, many = (found[images] for images in IMAGES)
    states = (IMAGES[1] - IMAGES[0]) * STEPS * 3 * 32 * 32 * 4 / 2**20
    say(f"{IMAGES[1]} images have {states:.0f} MiB more states than {IMAGES[0]}")
    rows = [[stage, f"{few[stage]:.1f}", f"{many[stage]:.1f}", f"{many[stage] / few[stage]:.3f}"] for stage in STAGES]
    rows.insert(0, ["stage", *(f"MiB at {images} images" for images in IMAGES), "ratio"])
    for row in rows:
        say(", ".join(row))
    with (Path(__file__).parent / "memory.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
