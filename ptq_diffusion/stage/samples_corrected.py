"""Stage: images of the quantized model, corrected."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.drawing.corrected import draw_corrected
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import IMAGES, Samples


class CorrectedSamples(Samples):
    """Images of the quantized model, corrected."""

    name = "samples_corrected"
    version = 1
    needs = (Quantize, Fit, EncodePrompts)
    uses = (*IMAGES, "backend")

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> DrawImages:
        quantized, correction = shop.quantized(cfg, inputs[Quantize.name]), FittedCorrection.load(inputs[Fit.name])
        return draw_corrected(quantized, correction, shop.conditions(cfg, quantized, inputs), shop.decoder(cfg))
