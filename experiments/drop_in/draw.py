"""A corrected model in a stock diffusers pipeline: python experiments/drop_in/draw.py [OVERRIDE ...].

Draws images by the loop of this package, then the same by a DDPMPipeline from what lies in the store, and compares.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import DDPMPipeline
from diffusers.utils.logging import disable_progress_bar
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from ptq_diffusion.correction import CorrectedScheduler
from ptq_diffusion.main import CONF
from ptq_diffusion.model.unet import MODELS
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.parts import build_model, build_quantized
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.samples import CorrectedSamples, QuantizedSamples, read_images, to_bytes
from ptq_diffusion.stage.store import Store

SMALL = ("images=8", "seeds=[0]", "micro_batch=8", "calibration.images=32", "noise.images=64")


def draw(pipe: DDPMPipeline, cfg: DictConfig, batch: int) -> Tensor:
    """The images of the first seed, (images, C, H, W) uint8, by the pipeline as it is; what pads a batch is dropped."""
    found = []
    for first in range(0, cfg.images, batch):
        streams = [generator("images", cfg.seeds[0], first + index) for index in range(batch)]
        found.append(pipe(batch, generator=streams, num_inference_steps=cfg.sampler.steps, output_type="pt").images)
    return to_bytes(torch.cat(found)[: cfg.images].cpu())


def difference(a: Tensor, b: Tensor) -> str:
    """In bytes."""
    gap = (a.int() - b.int()).abs()
    return f"{int((gap > 0).sum())} of {gap.numel()} bytes differ, by {int(gap.max())} at most"


def main() -> None:
    """Our images, the pipeline's, and how many of their bytes differ."""
    disable_progress_bar()
    say = Console(soft_wrap=True, highlight=False).print
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*SMALL, *sys.argv[1:]])
    store = Store(Path(cfg.outputs) / "store", Runtime("cpu", progress=False))
    ours, uncorrected = (read_images(store.obtain(stage, cfg)) for stage in (CorrectedSamples, QuantizedSamples))

    pipe = DDPMPipeline.from_pretrained(MODELS.path(cfg.model.path))
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = build_quantized(cfg, build_model(cfg), store.obtain(Calibrate, cfg)).network
    pipe.scheduler = CorrectedScheduler.from_pretrained(store.obtain(Fit, cfg))
    theirs = draw(pipe, cfg, cfg.micro_batch)
    say(
        f"{type(pipe).__name__} with {type(pipe.scheduler).__name__}: {len(theirs)} images of {tuple(theirs.shape[1:])}"
    )
    say("from our loop's:", difference(theirs, ours))
    say("from the uncorrected ones:", difference(theirs, uncorrected))
    say("from those drawn one by one:", difference(theirs, draw(pipe, cfg, 1)))
    with TemporaryDirectory() as folder:
        pipe.scheduler.save_pretrained(folder)
        say("saved:", ", ".join(sorted(path.name for path in Path(folder).iterdir())))
        pipe.scheduler = CorrectedScheduler.from_pretrained(folder)
    say("from those after loading it:", difference(theirs, draw(pipe, cfg, cfg.micro_batch)))


if __name__ == "__main__":
    main()
