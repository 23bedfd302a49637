"""What a factor on the velocity does to a quantized flow: python -m experiments.samplers.flow_gain.

PTQD divides the output of each step by its 1 + k. Here this is done alone, without a bias, at all steps, at those with
k > 0 and at those with k < 0; then the steps with k > 0 are multiplied by 1 + k, and by (1 + k)^2, in its place.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from experiments.judging import judged
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.sampler import Step, sample
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import read_images
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples

CELL = (
    *("model=cifar10_dit_flow", "sampler=flow_euler", "sampler.steps=20", "condition.guidance.scale=1.5"),
    *("bitwidth=w4a4", "correction=ptqd", "images=256", "seeds=[0]"),
)


def tried(k: Sequence[float]) -> dict[str, list[float]]:
    """The factors of all steps, by their description, from the k of each."""
    return {
        "divided by 1 + k": [1 / (1 + one) for one in k],
        "divided by 1 + k where k > 0": [1 / (1 + max(one, 0)) for one in k],
        "divided by 1 + k where k < 0": [1 / (1 + min(one, 0)) for one in k],
        "multiplied by 1 + k where k > 0": [1 + max(one, 0) for one in k],
        "multiplied by (1 + k)^2 where k > 0": [(1 + max(one, 0)) ** 2 for one in k],
    }


def scaled(model: Denoiser, factors: Sequence[float], condition: Condition | None, x_t: Tensor, step: Step) -> Tensor:
    """The model's output times the factor of the step, the shape of x_t."""
    return model.predict(x_t, step, condition).m * factors[step.i]


def drawn(cfg: DictConfig, store: Store, shop: Workshop) -> Iterator[tuple[str, Tensor]]:
    """The images of each variant, uint8, by its description."""
    for stage in (FullPrecisionSamples, QuantizedSamples):
        yield stage.name, read_images(store.obtain(stage, cfg))
    quantized = shop.quantized(cfg, store.obtain(Quantize, cfg))
    table, conditions, decoder = shop.table(cfg, quantized), shop.conditions(cfg, quantized, {}), shop.decoder(cfg)
    parts = chunks("images", list(cfg.seeds), cfg.images, cfg.micro_batch)
    k = [step.k for step in FittedCorrection.load(store.obtain(Fit, cfg)).report()]
    for name, factors in tried(k).items():
        shares = []
        for chunk in track(parts, name):
            predict = partial(scaled, quantized, factors, chunk.condition(conditions))
            *_, last = sample(predict, table, chunk.noise(quantized.shape))
            shares.append(to_bytes(decoder.decode(last.x_s))[: chunk.count])
        yield name, torch.cat(shares)


@torch.inference_mode()
def main() -> None:
    """Print a row for each variant; the last column is the mean difference of neighbouring grey values."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(CELL))
    shop = Workshop(Runtime("cpu", progress=False))
    images = dict(drawn(cfg, Store(Path(cfg.outputs) / "store", shop), shop))
    table = Table("velocity", "FID", "to float", "PSNR, dB", "differences")
    for name, cells in judged(cfg, images).items():
        table.add_row(name, *cells, f"{images[name].float().diff(dim=-1).abs().mean().item():.1f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
