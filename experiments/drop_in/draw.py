"""A corrected model in a stock diffusers pipeline: python experiments/drop_in/draw.py [OVERRIDE ...].

Draws images by the loop of this package, then the same by a DDPMPipeline, and compares: with the network that
goal=export writes, which repairs itself; and, where the correction reads the output and the state alone, with the
quantized network and a scheduler that repairs.
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

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.correction import CorrectedNetwork, CorrectedScheduler, FittedCorrection
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model.loading import MODELS
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.export import Export
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import read_images
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples

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


def quiet(pipe: DDPMPipeline) -> DDPMPipeline:
    """The same without a bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_scheduler(cfg: DictConfig, store: Store, quantized: QuantizedDenoiser, folder: Path) -> DDPMPipeline:
    """Around the quantized network, by a scheduler that is saved and loaded once."""
    pipe = quiet(DDPMPipeline.from_pretrained(MODELS.path(cfg.model.path)))
    pipe.unet = quantized.network
    CorrectedScheduler.from_pretrained(store.obtain(Fit, cfg)).save_pretrained(folder)
    pipe.scheduler = CorrectedScheduler.from_pretrained(folder)
    return pipe


def price(network: CorrectedNetwork, cfg: DictConfig) -> str:
    """What correcting a step costs."""
    model, correction = construct(cfg.model), network.correction
    macs = sum(site.macs for site in model.sites()) + model.attention_macs()
    own, steps = correction.macs(model.shape) / len(correction.steps), len(correction.steps)
    return f"{own:,.0f} of {macs:,} multiplications, {correction.size / steps:,.0f} bytes of coefficients"


def main() -> None:
    """Our images, the pipelines', and how many of their bytes differ."""
    disable_progress_bar()
    say = Console(soft_wrap=True, highlight=False).print
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*SMALL, *sys.argv[1:]])
    store = Store(Path(cfg.outputs) / "store", Workshop(Runtime("cpu", progress=False)))
    ours, uncorrected = (read_images(store.obtain(stage, cfg)) for stage in (CorrectedSamples, QuantizedSamples))

    pipe = quiet(DDPMPipeline.from_pretrained(store.obtain(Export, cfg)))
    theirs = draw(pipe, cfg, cfg.micro_batch)
    say(f"{type(pipe).__name__} with {type(pipe.unet).__name__} and {type(pipe.scheduler).__name__}:")
    say(f"{len(theirs)} images of {tuple(theirs.shape[1:])}; a corrected step: {price(pipe.unet, cfg)}")
    say("from our loop's:", difference(theirs, ours))
    say("from the uncorrected ones:", difference(theirs, uncorrected))
    say("from those drawn one by one:", difference(theirs, draw(pipe, cfg, 1)))
    fitted, quantized = (
        FittedCorrection.load(store.obtain(Fit, cfg)),
        store.shop.quantized(cfg, store.obtain(Quantize, cfg)),
    )
    if fitted.needs_features or fitted.rescales:
        say("with the scheduler alone: no, the correction reaches into the network")
    elif quantized.plan.varies:
        say("with the scheduler alone: no, the network's bits change from step to step")
    else:
        with TemporaryDirectory() as folder:
            alone = draw(with_scheduler(cfg, store, quantized, Path(folder)), cfg, cfg.micro_batch)
        say("with the quantized network and the scheduler alone, from our loop's:", difference(alone, ours))


if __name__ == "__main__":
    main()
