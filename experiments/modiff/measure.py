"""Quantized changes of activations between steps, MoDiff: python -m experiments.modiff.measure BITS ETA [OVERRIDES].

MoDiff (ICML 2025) quantizes the change of a layer's input since the step before, with error feedback:
d = Q(a_t - a_hat), a_hat <- a_hat + d, o_hat <- o_hat + W_q d. A layer is linear, so that o_hat is W_q a_hat + b and
a simulation keeps a_hat alone. The first step quantizes the input itself, in 8 bits. Q is a dynamic quantizer, the
affine grid between the extremes of each image's own numbers.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import PerTensor
from ptq_diffusion.quantizer.form import Dynamic
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import read_images
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples

FIRST_BITS = 8
"""Of the input of every layer at the first step, which has no step before it."""
FORM = Dynamic(PerTensor())
Input = Callable[[LayerSettings, tuple[Tensor, int], Tensor], Tensor]
"""A forward hook of a layer's settings: the input on a grid, from the input itself and the step."""


def dynamic(x: Tensor, bits: int) -> Tensor:
    """x on the grid between the extremes of each image, the shape of x."""
    unread = torch.zeros(1)
    return FORM.fake_quantized(x, Grid(bits, symmetric=False), unread, unread.int())


class DynamicInput:
    """A layer's input on a dynamic grid of the bits that its settings name."""

    def __call__(self, settings: LayerSettings, inputs: tuple[Tensor, int], _: Tensor) -> Tensor:
        x, i = inputs
        grid = settings.grid(i)
        return x if grid is None else dynamic(x, grid.bits)


class ChangedInput:
    """A layer's input as a_hat, the sum of its quantized changes since the first step of a micro-batch."""

    def __init__(self) -> None:
        self._a_hat: Tensor | None = None

    def __call__(self, settings: LayerSettings, inputs: tuple[Tensor, int], _: Tensor) -> Tensor:
        x, i = inputs
        grid = settings.grid(i)
        if grid is None:
            return x
        if i == 0 or self._a_hat is None:
            self._a_hat = dynamic(x, FIRST_BITS)
        else:
            self._a_hat = self._a_hat + dynamic(x - self._a_hat, grid.bits)
        return self._a_hat


@contextmanager
def inputs_by(network: QuantizedDenoiser, kind: Callable[[], Input]) -> Iterator[None]:
    """Within this context every layer of the network gets its input by this kind in place of its static grid."""
    with ExitStack() as stack:
        for layer in network.layers().values():
            stack.callback(layer.settings.register_forward_hook(kind()).remove)
        yield


def drawn(cfg: DictConfig, store: Store, shop: Workshop) -> Iterator[tuple[str, Tensor]]:
    """The images of each variant, uint8 in the order of seeds and samples, by its name."""
    for stage in (FullPrecisionSamples, QuantizedSamples, CorrectedSamples):
        yield stage.name, read_images(store.obtain(stage, cfg))
    inputs = {Quantize.name: store.obtain(Quantize, cfg)}
    work = QuantizedSamples().work(cfg, inputs, shop)
    network = shop.quantized(cfg, inputs[Quantize.name])
    kinds: Mapping[str, Callable[[], Input]] = {"dynamic": DynamicInput, "modiff": ChangedInput}
    for name, kind in kinds.items():
        with inputs_by(network, kind):
            parts = chunks("images", list(cfg.seeds), cfg.images, cfg.micro_batch)
            # The steps of one micro-batch follow each other, so that one a_hat serves each layer.
            shares = [work.forward(chunk, shop.device)["images"] for chunk in track(parts, name)]
        yield name, torch.cat(shares)


@torch.inference_mode()
def main(bits: str, eta: str, *overrides: str) -> None:
    """Print a row for each way to quantize the inputs of layers."""
    cell = [f"bitwidth={bits}", f"sampler.eta={eta}", "correction=rescaled_matched", "images=256", "seeds=[0,1,2]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*cell, *overrides])
    shop = Workshop(Runtime("cpu", progress=False))
    images = dict(drawn(cfg, Store(Path(cfg.outputs) / "store", shop), shop))
    table = Table("inputs", "FID", "to float", "PSNR, dB")
    for name, cells in judged(cfg, images).items():
        table.add_row(name, *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
