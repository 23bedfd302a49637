"""Contrast and power of the images of runs: python -m experiments.latent_league.contrast RUN [RUN ...].

RUN is the folder of a run, beside whose `runs` lies the `store`. Contrast is the mean standard deviation within an
image, of 256 grey values; power is that of the Fourier transform in five rings of frequencies, in squared
grey values a pixel.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.artefacts import artefacts
from ptq_diffusion.stage.samples import read_images
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples

RINGS = (0.01, 0.07, 0.14, 0.25, 0.4, 0.8)
"""Bounds of the rings, in cycles a pixel."""


def contrast(images: Tensor) -> float:
    """The mean over images, (N, C, H, W), of the standard deviation within each."""
    return images.flatten(1).std(1).mean().item()


def powers(images: Tensor) -> list[float]:
    """The power in each ring, mean over images and channels, of (N, C, H, W)."""
    height, width = images.shape[-2:]
    spectrum = torch.fft.fft2(images - images.mean((-1, -2), keepdim=True)).abs().square().mean((0, 1))
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    within = [spectrum[(low <= radius) & (radius < high)].sum() for low, high in zip(RINGS, RINGS[1:], strict=False)]
    return [power.item() / (height * width) ** 2 for power in within]


def main(runs: Sequence[str]) -> None:
    """Print a row for each set of images of each run."""
    table = Table("run", "images", "contrast", "power from low to high frequencies")
    for run in map(Path, runs):
        made = artefacts(run)
        for stage in (FullPrecisionSamples, QuantizedSamples, CorrectedSamples):
            if stage.name in made:
                images = read_images(made[stage.name]).double()
                bands = " ".join(f"{power:.1f}" for power in powers(images))
                table.add_row(run.name[:40], stage.name, f"{contrast(images):.1f}", bands)
    Console(width=140).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
