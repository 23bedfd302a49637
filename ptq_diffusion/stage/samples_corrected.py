"""Stage: images of the quantized model, corrected."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.workshop import build_quantized
from ptq_diffusion.stage.draw_corrected import draw_corrected
from ptq_diffusion.stage.draw_images import DrawImages
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import SAMPLING, Samples


class CorrectedSamples(Samples):
    """Images of the quantized model, corrected."""

    name = "samples_corrected"
    version = 1
    needs = (Quantize, Fit)
    uses = SAMPLING

    title = "corrected images"

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> DrawImages:  # noqa: ARG002
        return draw_corrected(build_quantized(inputs[Quantize.name]), FittedCorrection.load(inputs[Fit.name]))
