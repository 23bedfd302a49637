"""Stage: images of the float model."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.samples import SAMPLING, Samples


class FullPrecisionSamples(Samples, ModelStage):
    """Images of the float model."""

    name = "samples_full_precision"
    version = 1
    uses = ("model", *SAMPLING)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> DrawImages:  # noqa: ARG002
        model = shop.model(cfg)
        return DrawImages.of(model, shop.table(cfg, model))
