"""Stage: how far the states of the quantized and the corrected model drift from the float ones, step by step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ptq_diffusion.artefact.files import read_json, write_json
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, chunks, read_chunks, run_chunks
from ptq_diffusion.engine.models import decoder_checksum
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.metric import FLOAT
from ptq_diffusion.model import Pixels
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.drawing.side_by_side import COMPARED, works_of_variants
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import SAMPLING

PIXEL_RANGE = 2.0
"""Images that are themselves denoised lie in [-1, 1]."""


@dataclass(frozen=True)
class Drift:
    """The distance of a variant's states to those of the float model from the same noise, step by step.

    PSNR is 10 log10(R^2 / MSE) of every image, and then the mean, with R = 2, the range of pixels in [-1, 1], or of
    latents the range of the image's own float x_0. So the last step's is that of the images, up to the bytes that they
    are rounded to.

    Args:
        mse: the mean squared difference of the states that each step leads to.
        psnr: in dB; None where those of an image are equal, or constant.
    """

    mse: Sequence[float]
    psnr: Sequence[float | None]

    @classmethod
    def of(cls, errors: Tensor, ranges: Tensor) -> "Drift":
        """The drift of images whose mean squared differences (steps, N) and ranges (N,) are known."""
        ratios = (20 * ranges.log10() - 10 * errors.log10()).mean(1)
        return cls(errors.mean(1).tolist(), [ratio if math.isfinite(ratio) else None for ratio in ratios.tolist()])


class SideBySide(ChunkWork):
    """Sampling of all variants side by side, so that one state of each is in memory.

    Args:
        variants: the work that draws each, `FLOAT` among them.
    """

    def __init__(self, variants: Mapping[str, DrawImages]) -> None:
        super().__init__()
        self.variants = nn.ModuleDict(variants)
        self.pixels = isinstance(variants[FLOAT].decoder, Pixels)

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        walks = {name: work.visits(chunk, device) for name, work in self._works().items()}
        errors: dict[str, list[Tensor]] = {name: [] for name in walks if name != FLOAT}
        for visits in zip(*walks.values(), strict=True):
            states = {name: visit.x_s[: chunk.count] for name, visit in zip(walks, visits, strict=True)}
            for name, rows in errors.items():
                rows.append((states[name] - states[FLOAT]).square().mean((1, 2, 3)).cpu().double())
        return {name: torch.stack(rows) for name, rows in errors.items()} | {"range": self._range(states[FLOAT])}

    def _works(self) -> dict[str, DrawImages]:
        return {name: work for name, work in self.variants.items() if isinstance(work, DrawImages)}

    def _range(self, x_0: Tensor) -> Tensor:
        """The range R of every image, (N,)."""
        if self.pixels:
            return torch.full((len(x_0),), PIXEL_RANGE, dtype=torch.float64)
        return (x_0.amax((1, 2, 3)) - x_0.amin((1, 2, 3))).cpu().double()


class MeasureDrift(ModelStage):
    """`drift.json`: a `Drift` of the quantized and of the corrected model, on the first images of the first seed."""

    name = "drift"
    version = 1
    needs = (Quantize, Fit, EncodePrompts)
    uses = (*SAMPLING, "backend", "drift")
    scratch = ("chunks",)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return super().evidence(cfg) | {"decoder": decoder_checksum(cfg)}

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        run_chunks(partial(self.work, cfg, inputs), drift_chunks(cfg), out / "chunks", shop, self.title)
        parts = list(read_chunks(out / "chunks"))
        errors = {name: torch.cat([part[name] for part in parts], 1) for name in COMPARED}
        ranges = torch.cat([part["range"] for part in parts])
        write_json(out / "drift.json", {name: asdict(Drift.of(rows, ranges)) for name, rows in errors.items()})

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> SideBySide:
        """The work of every device."""
        return SideBySide(works_of_variants(cfg, inputs, shop))


def drift_chunks(cfg: DictConfig) -> list[Chunk]:
    """The images that drift is measured on: the first of the first seed, or all of it where they are fewer."""
    count = min(cfg.drift.images, cfg.images)
    return chunks("images", list(cfg.seeds)[:1], count, min(cfg.micro_batch, count))


def read_drift(folder: Path) -> dict[str, Drift]:
    """The drift of every variant but the float one, of the stage's folder."""
    return {name: Drift(**content) for name, content in read_json(folder / "drift.json").items()}
