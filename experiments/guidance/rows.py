"""The noise of guidance, by rows: python -m experiments.guidance.rows RUN [IMAGES].

RUN is the folder of a guided run, beside whose `runs` lies the `store`. For every third step, at states of float
sampling: the power of the guided output, of what guidance adds to it, (s - 1)(c - n) of the rows c with the condition
and n without, and of the noise of each, in the quantized network and with the layers that a correction rescales.
"""

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.artefacts import artefacts
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser, Guided
from ptq_diffusion.sampler import Step, sample
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.quantize import Quantize

SEED, EVERY = 3000, 3
"""Of the noise of the images, and of the steps that are printed."""


def stronger(guided: Denoiser) -> Guided:
    """A guided model with a scale that is larger by 1: its output less that of the other is c - n."""
    assert isinstance(guided, Guided), "expected a run with guidance"
    return Guided(guided.denoiser, guided.null, guided.scale + 1, guided.interval)


def power(x: Tensor) -> str:
    """The mean square, as it is printed."""
    return f"{float(x.square().mean()):.4f}"


@torch.inference_mode()
def main(run: str, images: int) -> None:
    """Print the table of a run."""
    quiet_libraries()
    cfg, made = OmegaConf.load(Path(run) / "config.yaml"), artefacts(Path(run))
    assert isinstance(cfg, DictConfig)
    shop = Workshop(Runtime("cpu", progress=False))
    model, quantized = shop.guided(cfg, made), shop.quantized(cfg, made[Quantize.name])
    rescaled = quantized.rescaled(FittedCorrection.load(made[Fit.name]).rescalings)
    other = stronger(model)
    pairs = [(model, other), *((network, network.guided_as(other)) for network in (quantized, rescaled))]
    noises = [f"{part}, {name}" for name in ("quantized", "rescaled") for part in ("noise", "of it in what is added")]
    printed = Table("step", "output", "guidance adds", *noises)
    (chunk,) = chunks("trial", [SEED], images, images)
    condition = shop.conditions(cfg, shop.model(cfg), made).of(SEED, range(images), "trial")

    def predict(x_t: Tensor, step: Step) -> Tensor:
        if step.i % EVERY:
            return model.predict(x_t, step, condition).m
        outputs = [[network.predict(x_t, step, condition).m for network in pair] for pair in pairs]
        parts = [(m, (other.scale - 2) * (larger - m)) for m, larger in outputs]
        noise = [
            power(of_network - exact) for part in parts[1:] for of_network, exact in zip(part, parts[0], strict=True)
        ]
        printed.add_row(str(step.i), *map(power, parts[0]), *noise)
        return parts[0][0]

    for _ in sample(predict, shop.table(cfg, shop.model(cfg)), chunk.noise(model.shape)):
        pass
    Console(width=140).print(printed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 48)
