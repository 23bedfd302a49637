"""One step quantized and corrected, all others in float: python -m experiments.step_errors.measure RUN [IMAGES].

RUN is the folder of a run of a model of pixels without a condition, beside whose `runs` lies the `store`. For each
step: how far x_0 moves (squared, by pixel and relative to the variance of float images at its frequency), the Frechet
distance of its features to the float ones, and how the changes of different steps are correlated.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.artefacts import artefacts
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.chunks import Chunk, chunks
from ptq_diffusion.engine.conditions import Unconditional
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.distance.frechet import FeatureMoments, frechet_distance
from ptq_diffusion.numeric.spectrum import Whitening
from ptq_diffusion.sampler import Step, sample
from ptq_diffusion.stage.drawing.corrected import draw_corrected
from ptq_diffusion.stage.drawing.images import to_bytes
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.quantize import Quantize

WHOLE = -1
"""In the place of a step: all steps quantized."""


class Run:
    """The float and the corrected network of a run."""

    def __init__(self, folder: Path) -> None:
        self.cfg = OmegaConf.load(folder / "config.yaml")
        assert isinstance(self.cfg, DictConfig)
        if self.cfg.condition.source is not None or self.cfg.noise.steps is not None:
            raise ValueError("expected a run without a condition, fitted on its own steps, got another")
        made = artefacts(folder)
        shop = Workshop(Runtime("cpu", progress=False))
        self.model = shop.model(self.cfg)
        self.table, self.decoder = shop.table(self.cfg, self.model), shop.decoder(self.cfg)
        correction = FittedCorrection.load(made[Fit.name])
        quantized = shop.quantized(self.cfg, made[Quantize.name])
        self.drawn = draw_corrected(quantized, correction, Unconditional(), self.decoder)
        self.extractor = construct(self.cfg.feature.extractor)

    def float_path(self, chunk: Chunk) -> list[Tensor]:
        """m of every step, and x_0 behind them."""
        noise = chunk.noise(self.model.shape)
        visits = list(sample(lambda x_t, step: self.model.predict(x_t, step).m, self.table, noise))
        return [*(visit.m for visit in visits), visits[-1].x_s[: chunk.count]]

    def x_0(self, chunk: Chunk, i: int, path: list[Tensor]) -> Tensor:
        """Of one chunk with step i quantized and corrected, and the float outputs as long as the states are float."""
        corrected = self.drawn.predictor(chunk, None)

        def predict(x_t: Tensor, step: Step) -> Tensor:
            if i in (WHOLE, step.i):
                return corrected(x_t, step)
            return path[step.i] if step.i < i else self.model.predict(x_t, step).m

        *_, last = sample(predict, self.drawn.steps, chunk.noise(self.model.shape), self.drawn.sigma)
        return last.x_s[: chunk.count]

    def moments(self, x_0: Tensor) -> FeatureMoments:
        """Of the features of the images that x_0 is."""
        features = self.extractor.describe(to_bytes(self.decoder.decode(x_0)))
        return FeatureMoments.of(features.vectors, "features")


def rows(changes: Tensor, whitening: Whitening, distances: list[float]) -> Iterator[tuple[str, ...]]:
    """A row for each step, (S, N, C, H, W), and one of all steps together in the last place."""
    whitened = torch.stack([whitening(change) for change in changes]).flatten(1)
    products = whitened @ whitened.T / whitened.shape[1]
    lengths = products.diagonal().sqrt()
    for i, (change, distance) in enumerate(zip(changes, distances, strict=True)):
        squared, relative = change.square().mean().item(), products[i, i].item()
        whole = i == len(changes) - 1
        neighbour = (products[i, i - 1] / lengths[i] / lengths[i - 1]).item()
        correlation = "" if whole or i == 0 else f"{neighbour:.2f}"
        share = "" if whole else f"{products[i, -1].item() / relative:.2f}"
        ratios = f"{distance / squared:.1f}", f"{distance / relative:.2f}"
        yield (
            "all" if whole else str(i),
            f"{squared:.5f}",
            f"{relative:.5f}",
            f"{distance:.5f}",
            *ratios,
            correlation,
            share,
        )


@torch.inference_mode()
def main(folder: str, images: int) -> None:
    """Print the table of a run."""
    quiet_libraries()
    run = Run(Path(folder))
    parts = chunks("images", [run.cfg.seeds[0]], images, min(images, run.cfg.micro_batch))
    paths = [run.float_path(chunk) for chunk in parts]
    float_x_0 = torch.cat([path[-1] for path in paths])
    target, changes, distances = run.moments(float_x_0), [], []
    for i in [*range(len(run.table)), WHOLE]:
        x_0 = torch.cat([run.x_0(chunk, i, path) for chunk, path in zip(parts, paths, strict=True)])
        changes.append((x_0 - float_x_0).double())
        distances.append(frechet_distance(run.moments(x_0), target))
    ratios = "FID to float / squared", "/ relative"
    alike = "correlation with the step before", "share of all / alone"
    table = Table("step", "squared change", "relative change", "FID to float", *ratios, *alike)
    for row in rows(torch.stack(changes), Whitening.of(float_x_0), distances):
        table.add_row(*row)
    Console(width=150).print(table)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 128)
