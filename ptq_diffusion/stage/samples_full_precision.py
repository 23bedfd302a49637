"""Stage: images of the float model."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import build_model, build_steps
from ptq_diffusion.stage.draw_images import DrawImages
from ptq_diffusion.stage.samples import SAMPLING, Samples


class FullPrecisionSamples(Samples, ModelStage):
    """Images of the float model."""

    name = "samples_full_precision"
    version = 1
    uses = ("model", *SAMPLING)

    title = "full-precision images"

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> DrawImages:  # noqa: ARG002
        model = build_model(cfg)
        return DrawImages.of(model, build_steps(cfg, model))
