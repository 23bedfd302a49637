"""Stage: images of the quantized model as it is."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.workshop import build_quantized, build_steps
from ptq_diffusion.stage.draw_images import DrawImages
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import SAMPLING, Samples


class QuantizedSamples(Samples):
    """Images of the quantized model as it is."""

    name = "samples_quantized"
    version = 1
    needs = (Quantize,)
    uses = SAMPLING

    title = "quantized images"

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path]) -> DrawImages:
        quantized = build_quantized(inputs[Quantize.name])
        return DrawImages.of(quantized, build_steps(cfg, quantized))
