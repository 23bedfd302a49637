"""Stages: images of the float, the quantized and the corrected model, from the same noise."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.correction import FittedCorrection, Predictor
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import OutputLayerTap
from ptq_diffusion.sampler import Step, sample
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.chunks import Chunk, ChunkWork, chunks, read_chunks, run_chunks
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.parts import build_model, build_quantized, build_steps
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.store import ModelStage

SAMPLING = ("model", "sampler", "images", "seeds", "micro_batch")
QUANTIZING = ("quantizer", "bitwidth")


class DrawImages(ChunkWork):
    """Sampling to the end; images as bytes.

    Args:
        model: what is sampled, float or quantized.
        steps: the table.
        predictor: for each chunk, from (x_t, step) to the output that is used.
        sigma: the noise scale that is used at a step.
    """

    def __init__(
        self,
        model: Denoiser,
        steps: Sequence[Step],
        predictor: Callable[[Chunk], Callable[[Tensor, Step], Tensor]],
        sigma: Callable[[Step], float],
    ) -> None:
        super().__init__()
        self.model, self.steps, self.predictor, self.sigma = model, steps, predictor, sigma

    @classmethod
    def of(cls, model: Denoiser, steps: Sequence[Step]) -> "DrawImages":
        """Uncorrected."""
        return cls(model, steps, lambda _: lambda x_t, step: model.predict(x_t, step.t), lambda step: step.sigma)

    @classmethod
    def corrected(cls, model: Denoiser, tap: OutputLayerTap, correction: FittedCorrection) -> "DrawImages":
        """The quantized model behind `tap` with the correction's output, noise scale and table."""

        def predictor(chunk: Chunk) -> Predictor:
            apart = dataclasses.replace(chunk, purpose=f"{chunk.purpose}, noised again")
            return Predictor(correction, tap.predict, apart.noise(model.shape))

        return cls(model, correction.steps, predictor, correction.sigma)

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        *_, last = sample(self.predictor(chunk), self.steps, chunk.noise(self.model.shape), self.sigma, device)
        return {"images": to_bytes(self.model.decode(last.x_s))[: chunk.count]}


class Samples(ModelStage):
    """Images, `images` in each chunk file."""

    title: ClassVar[str]

    @abstractmethod
    def work(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> DrawImages:
        """What is done on every device."""

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> None:
        wanted = chunks("images", list(cfg.seeds), cfg.images, cfg.micro_batch)
        run_chunks(partial(self.work, cfg, inputs), wanted, out / "chunks", runtime, self.title)


class FullPrecisionSamples(Samples):
    """Images of the float model."""

    name = "samples_full_precision"
    version = 1
    uses = SAMPLING

    title = "full-precision images"

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> DrawImages:  # noqa: ARG002
        model = build_model(cfg)
        return DrawImages.of(model, build_steps(cfg, model))


class QuantizedSamples(Samples):
    """Images of the quantized model as it is."""

    name = "samples_quantized"
    version = 1
    needs = (Calibrate,)
    uses = (*SAMPLING, *QUANTIZING)

    title = "quantized images"

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> DrawImages:
        model = build_model(cfg)
        quantized = build_quantized(cfg, model, inputs[Calibrate.name])
        return DrawImages.of(quantized, build_steps(cfg, model))


class CorrectedSamples(Samples):
    """Images of the quantized model, corrected."""

    name = "samples_corrected"
    version = 1
    needs = (Calibrate, Fit)
    uses = (*SAMPLING, *QUANTIZING)

    title = "corrected images"

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> DrawImages:
        model = build_model(cfg)
        quantized = build_quantized(cfg, model, inputs[Calibrate.name])
        return DrawImages.corrected(
            quantized, OutputLayerTap(quantized, model.sites()), FittedCorrection.load(inputs[Fit.name])
        )


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8, rounded to nearest."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def read_images(folder: Path) -> Tensor:
    """All images of a samples artefact, (seeds x images, C, H, W) uint8, in the order of seeds and samples."""
    return torch.cat([chunk["images"] for chunk in read_chunks(folder / "chunks")])
