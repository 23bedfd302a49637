"""Stages: images of the float, the quantized and the corrected model, from the same noise."""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.network import OutputLayerTap
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.chunks import chunks, read_chunks, run_chunks
from ptq_diffusion.stage.draw import DrawImages
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.parts import build_model, build_quantized, build_steps
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.store import ModelStage

SAMPLING = ("model", "sampler", "images", "seeds", "micro_batch")
QUANTIZING = ("quantizer", "bitwidth")


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


def read_images(folder: Path) -> Tensor:
    """All images of a samples artefact, (seeds x images, C, H, W) uint8, in the order of seeds and samples."""
    return torch.cat([chunk["images"] for chunk in read_chunks(folder / "chunks")])
