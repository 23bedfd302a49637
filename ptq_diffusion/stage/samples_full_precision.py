"""Stage: images of the float model."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.samples import SAMPLING, Samples


class FullPrecisionSamples(Samples):
    """Images of the float model."""

    name = "samples_full_precision"
    version = 1
    needs = (EncodePrompts,)
    uses = SAMPLING

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> DrawImages:
        model = shop.guided(cfg, inputs)
        conditions = shop.conditions(cfg, model, inputs)
        return DrawImages.of(model, shop.table(cfg, model), conditions, shop.decoder(cfg))
