"""Where a loss lies, in black pixels or in others: python -m experiments.frontier.black_pixels RUN [RUN ...].

RUN is the folder of a run, beside whose `runs` lies the `store`. Black are the numbers of at most `BLACK` of 255 in
the float images, in each channel. One part of the pixels at a time is taken from the float images, the rest from the
corrected ones.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.artefacts import artefacts
from experiments.judging import judged
from ptq_diffusion.stage.samples import read_images
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples

BLACK = 3
"""The largest number of a black pixel."""


@torch.inference_mode()
def main(runs: Sequence[str]) -> None:
    """Print four rows for each run."""
    table = Table("run", "images", "FID", "FID to float", "PSNR")
    for run in map(Path, runs):
        made = artefacts(run)
        target, corrected = (read_images(made[stage.name]) for stage in (FullPrecisionSamples, CorrectedSamples))
        cfg = OmegaConf.load(run / "config.yaml")
        assert isinstance(cfg, DictConfig)
        black = target <= BLACK
        images = {
            FullPrecisionSamples.name: target,
            CorrectedSamples.name: corrected,
            "black pixels of the float images": torch.where(black, target, corrected),
            "all other pixels of the float images": torch.where(black, corrected, target),
        }
        for name, row in judged(cfg, images).items():
            table.add_row(run.name[-40:], name, *row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
