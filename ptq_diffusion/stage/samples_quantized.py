"""Stage: images of the quantized model as it is."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.workshop import build_model, build_quantized, build_steps
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.draw_images import DrawImages
from ptq_diffusion.stage.samples import QUANTIZING, SAMPLING, Samples


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
