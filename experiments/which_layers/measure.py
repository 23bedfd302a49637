"""Which layers deserve a map of their own at every step, and which map: python experiments/which_layers/measure.py.

Layers, or whole residual and attention blocks, of a quantized network are mapped to what the float network says there,
one after the other within one forward, each on a grid of its input of its own if so wanted; then its output layer is
refitted and matched, as `readout_matched` does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.correction import Correction, PairedBatch, PathEvidence, StepCorrection
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric import paired_fid, paired_fid_to
from ptq_diffusion.model import Denoiser, Pixels
from ptq_diffusion.network import InputGrid, QuantizedDenoiser, Rescaling, regridding, watching
from ptq_diffusion.quantizer import LpSearch
from ptq_diffusion.sampler import Step
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import read_images
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples

CELL = ("model=fashion_ddpm", "bitwidth=w4a4", "sampler.eta=0", "correction=readout_matched", "images=512", "seeds=[0]")
FITTED_ON, RIDGE, MSE = 64, 1e-3, LpSearch(2.0, 80)
Linear = tuple[Tensor, Tensor]
"""A matrix (O, O) and an offset (O,), float64, of output channels."""


def offset(y: Tensor, target: Tensor) -> Linear:
    """The mean."""
    return torch.eye(len(y), dtype=torch.float64), target.mean(1) - y.mean(1)


def least_squares(y: Tensor, target: Tensor) -> Linear:
    """A gain and an offset of every channel."""
    apart, aim = y - y.mean(1, keepdim=True), target - target.mean(1, keepdim=True)
    power = apart.square().sum(1)
    return _about_means(torch.where(power > 1e-9, (apart * aim).sum(1) / power, 1.0).diag(), y, target)


def moments(y: Tensor, target: Tensor) -> Linear:
    """The mean and the standard deviation of every channel, as `rescaled` does."""
    own, aim = y.std(1), target.std(1)
    return _about_means(torch.where((own > 1e-5) & (aim > 1e-5), aim / own, 1.0).diag(), y, target)


def mixed(y: Tensor, target: Tensor) -> Linear:
    """Least squares of all channels on all, drawn towards doing nothing."""
    apart = y - y.mean(1, keepdim=True)
    power = apart @ apart.T
    power += RIDGE * power.diagonal().mean() * torch.eye(len(y), dtype=torch.float64)
    lacking = torch.linalg.pinv(power, hermitian=True) @ apart @ (target - y).T
    return _about_means(torch.eye(len(y)) + lacking.T, y, target)


def _about_means(matrix: Tensor, y: Tensor, target: Tensor) -> Linear:
    return matrix, target.mean(1) - matrix @ y.mean(1)


MAPS = {"offset": offset, "least squares": least_squares, "moments": moments, "all channels": mixed}


def channels_first(y: Tensor) -> Tensor:
    """(B, O, H, W) or (B, ..., O) to (O, observations), float64."""
    return (y.transpose(0, 1).flatten(1) if y.ndim == 4 else y.flatten(0, -2).T).double()


def applied(y: Tensor, found: Linear) -> Tensor:
    """The map of a layer's output."""
    matrix, shift = (part.to(y) for part in found)
    if y.ndim == 4:
        return torch.einsum("oc,bchw->bohw", matrix, y) + shift[:, None, None]
    return y @ matrix.T + shift


@dataclass(frozen=True)
class Pair:
    """The networks of the cell, its table and what is fitted behind the output."""

    model: Denoiser
    quantized: QuantizedDenoiser
    steps: Sequence[Step]
    behind: Correction[PathEvidence]

    def places(self, kind: str) -> Sequence[str]:
        """Names of layers but for the output layer, or of blocks."""
        modules = self.quantized.network.named_modules()
        blocks = [name for name, module in modules if isinstance(module, ResnetBlock2D | Attention)]
        return {"layers": list(self.quantized.inner_layers()), "blocks": blocks, "nothing": []}[kind]


@dataclass(frozen=True)
class Fitted:
    """What is done at a step.

    Args:
        behind: the output.
        maps: of places by name.
        grids: of layers' inputs by name.
    """

    behind: StepCorrection
    maps: Mapping[str, Linear]
    grids: Mapping[str, InputGrid]

    def regridded(self, network: QuantizedDenoiser, i: int) -> QuantizedDenoiser:
        """The network on these grids at step i."""
        width = {name: len(network.layer(name).operands(i)[0]) for name in self.grids}
        return network.at(
            i,
            {
                name: Rescaling(torch.ones(width[name]), torch.zeros(width[name]), own)
                for name, own in self.grids.items()
            },
        )


def fitted(
    pair: Pair, places: Sequence[str], solve: Callable[[Tensor, Tensor], Linear], regrids: bool
) -> Sequence[Fitted]:
    """Every step, along the path that the steps before lead to."""
    quantized = pair.quantized
    (chunk,) = chunks("noise", [1000], FITTED_ON, FITTED_ON)
    noise = chunk.noise(pair.model.shape)
    x = y = noise.draw("cpu")
    found = []
    for step in pair.steps:
        aims: dict[str, Tensor] = {}
        maps: dict[str, Linear] = {}
        grids: dict[str, InputGrid] = {}

        def see(name: str, output: Tensor, maps: dict[str, Linear] = maps, aims: dict[str, Tensor] = aims) -> Tensor:
            maps[name] = solve(channels_first(output), channels_first(aims[name]))
            return applied(output, maps[name])

        float_m = pair.model.predict(x, step).m
        with watching(pair.model.network, places, aims.__setitem__):
            m = pair.model.predict(y, step).m
        layers = quantized.inner_layers() if regrids else {}
        with regridding(layers, MSE, step.i, grids), watching(quantized.network, places, see):
            q, features, _ = quantized.predict(y, step)
        assert features is not None
        own = pair.behind.fit_step(PathEvidence([PairedBatch(0, q, y, features, float_m, x, m)]), step)
        found.append(Fitted(own, maps, grids))
        z = noise.draw("cpu")
        x, y = step.mean(x, float_m) + step.sigma * z, step.mean(y, own.output(q, y, features)) + own.sigma * z
    return found


def mapped(maps: Mapping[str, Linear], name: str, output: Tensor) -> Tensor:
    """A layer's output with its own map."""
    return applied(output, maps[name])


def images(pair: Pair, found: Sequence[Fitted], count: int) -> Tensor:
    """What the mapped network draws, uint8."""
    networks = [own.regridded(pair.quantized, step.i) for step, own in zip(pair.steps, found, strict=True)]
    drawn = []
    for chunk in chunks("images", [0], count, 64):
        noise = chunk.noise(pair.model.shape)
        y = noise.draw("cpu")
        for step, network, own in zip(pair.steps, networks, found, strict=True):
            with watching(network.network, own.maps, partial(mapped, own.maps)):
                q, features, _ = network.predict(y, step)
            y = step.mean(y, own.behind.output(q, y, features)) + own.behind.sigma * noise.draw("cpu")
        drawn.append(to_bytes(Pixels().decode(y))[: chunk.count])
    return torch.cat(drawn)


@torch.inference_mode()
def main() -> None:
    """Print a row for each place and map."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(CELL))
    shop = Workshop(Runtime("cpu", progress=False))
    store = Store(Path("outputs") / "store", shop)
    model = shop.model(cfg)
    quantized = shop.quantized(cfg, store.obtain(Quantize, cfg))
    pair = Pair(model, quantized, shop.table(cfg, model), construct(cfg.correction))
    drawn = {stage.name: read_images(store.obtain(stage, cfg)) for stage in (FullPrecisionSamples, QuantizedSamples)}
    tried = [("nothing", "offset", False), *((kind, name, False) for kind in ("layers", "blocks") for name in MAPS)]
    tried += [("nothing", "offset", True), ("layers", "moments", True), ("layers", "all channels", True)]
    for kind, name, regrids in track(tried, "places and maps"):
        label = f"{kind}, {name}" + ", input grids" * regrids
        drawn[label] = images(pair, fitted(pair, pair.places(kind), MAPS[name], regrids), cfg.images)
    extractor = construct(cfg.feature.extractor)
    features = {name: extractor.features(own) for name, own in drawn.items()}
    reference = construct(cfg.reference).statistics(extractor).moments
    fid = paired_fid(features, reference, 200, 0, strata=1)
    to_float = paired_fid_to(FullPrecisionSamples.name, features, extractor.checksum(), 200, 0, strata=1)
    table = Table("", "FID", "FID to float")
    for name, own in fid.estimates.items():
        table.add_row(name, f"{own.value:.2f} ± {own.standard_error:.2f}", f"{to_float.estimates[name].value:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
