"""Stage: the quantized, corrected model as a pipeline that stock diffusers loads."""

from collections.abc import Mapping
from pathlib import Path

from diffusers import DDPMPipeline
from omegaconf import DictConfig

from ptq_diffusion.correction import CorrectedNetwork, CorrectedScheduler, FittedCorrection
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.fit import Fit


class Export(ModelStage):
    """A folder for `DDPMPipeline.from_pretrained`, which draws the images of `samples_corrected`."""

    name = "export"
    version = 1
    needs = (Calibrate, Fit)
    uses = ("model", "quantizer", "bitwidth")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        model, correction = shop.model(cfg).cpu(), FittedCorrection.load(inputs[Fit.name])
        network = CorrectedNetwork(model, shop.calibrated(cfg, inputs[Calibrate.name]), correction)
        DDPMPipeline(network, CorrectedScheduler(correction.without_repairs())).save_pretrained(out)
