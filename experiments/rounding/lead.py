"""Roundings and rescaled layers on few images: python experiments/rounding/lead.py w3a8 nearest gptq adaround.

Every network draws the same images from the same noise at eta 0, so that a dozen images tell their distances to the
float ones apart. Layers are rescaled on states of float sampling of other images.
"""

import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.correction import Rescaled
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.engine.chunks import read_chunks
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler import Table, Visit, sample
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.trajectories import Trajectories

IMAGES, CALIBRATION = 12, 16


def cell(bitwidth: str, rounding: str) -> DictConfig:
    """The configuration of a rounding."""
    few = [f"calibration.images={CALIBRATION}", f"micro_batch={CALIBRATION}", "outputs=outputs/rounding_lead"]
    words = [f"bitwidth={bitwidth}", f"rounding={rounding}", "sampler.eta=0", "correction=none", *few]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", words)


def visits(denoiser: Denoiser, table: Table) -> list[Visit]:
    """Sampling of the images by a network."""
    noise = SampleNoise(77, range(IMAGES), denoiser.shape, "lead")
    return list(sample(lambda x, step: denoiser.predict(x, step).m, table, noise))


def image(table: Table, last: Visit) -> Tensor:
    """The images that a walk ends in, -1 to 1."""
    return table[len(table) - 1].mean(last.x_t, last.m).clamp(-1, 1)


def told(name: str, network: Denoiser, table: Table, path: list[Visit]) -> str:
    """A line with the PSNR to the float images, and the mean square of the noise of m on the float path."""
    error = (image(table, visits(network, table)[-1]) - image(table, path[-1])).square().flatten(1).mean(1)
    noise = [float((network.predict(visit.x_t, visit.step).m - visit.m).square().mean()) for visit in path]
    psnr = float((10 * torch.log10(4 / error)).mean())
    return f"{name}: PSNR to float {psnr:.2f} dB, noise {sum(noise) / len(noise):.5f}, of the last step {noise[-1]:.5f}"


def rescaled(model: Denoiser, quantized: QuantizedDenoiser, table: Table, states: Tensor) -> QuantizedDenoiser:
    """The network with layers rescaled at every step."""
    correction = Rescaled(None, images=CALIBRATION)
    return quantized.rescaled(
        [correction.rescalings(model, quantized, PathState(states[s.i], s, None))[0] for s in table]
    )


@torch.no_grad()
def main(bitwidth: str, *roundings: str) -> None:
    """Say a line of every rounding, alone and with rescaled layers."""
    shop = Workshop(Runtime("cpu", progress=False))
    store = Store(Path("outputs/rounding_lead/store"), shop)
    for rounding in roundings:
        cfg = cell(bitwidth, rounding)
        start = time.process_time()
        quantized = shop.quantized(cfg, store.obtain(Quantize, cfg))
        model = shop.model(cfg)
        table, made = shop.table(cfg, model), time.process_time()
        path = visits(model, table)
        shop.runtime.say(told(f"{bitwidth} {rounding} ({made - start:.1f} s of CPU)", quantized, table, path))
        (chunk,) = read_chunks(store.obtain(Trajectories, cfg) / "chunks")
        start = time.process_time()
        corrected = rescaled(model, quantized, table, chunk["states"])
        name = f"{bitwidth} {rounding}, rescaled ({time.process_time() - start:.1f} s)"
        shop.runtime.say(told(name, corrected, table, path))


if __name__ == "__main__":
    main(*sys.argv[1:])
