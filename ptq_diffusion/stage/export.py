"""Stage: the quantized, corrected model as a pipeline that stock diffusers loads."""

from collections.abc import Mapping
from pathlib import Path

from diffusers import DDPMPipeline
from omegaconf import DictConfig

from ptq_diffusion.correction import CorrectedNetwork, CorrectedScheduler, FittedCorrection
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.quantize import Quantize


class Export(Stage):
    """A folder for `DDPMPipeline.from_pretrained`, which draws the images of `samples_corrected`."""

    name = "export"
    version = 1
    needs = (Quantize, Fit)
    uses = ()

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        correction = FittedCorrection.load(inputs[Fit.name])
        network = CorrectedNetwork(shop.host.quantized(inputs[Quantize.name]), correction)
        DDPMPipeline(network, CorrectedScheduler(correction.without_repairs())).save_pretrained(out)
