"""Stage: images of the quantized model, corrected."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import OutputLayerTap
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.draw_corrected import draw_corrected
from ptq_diffusion.stage.draw_images import DrawImages
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.samples import IMAGES, QUANTIZING, Samples


class CorrectedSamples(Samples):
    """Images of the quantized model, corrected."""

    name = "samples_corrected"
    version = 1
    needs = (Calibrate, Fit)
    uses = ("model", *IMAGES, *QUANTIZING)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> DrawImages:
        quantized, sites = shop.quantized(cfg, inputs[Calibrate.name]), shop.model(cfg).sites()
        return draw_corrected(quantized, OutputLayerTap(quantized, sites), FittedCorrection.load(inputs[Fit.name]))
