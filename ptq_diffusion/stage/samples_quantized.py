"""Stage: images of the quantized model as it is."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples import SAMPLING, Samples


class QuantizedSamples(Samples):
    """Images of the quantized model as it is."""

    name = "samples_quantized"
    version = 1
    needs = (Quantize, EncodePrompts)
    uses = (*SAMPLING, "backend")

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> DrawImages:
        quantized = shop.quantized(cfg, inputs[Quantize.name])
        conditions = shop.conditions(cfg, quantized, inputs)
        return DrawImages.of(quantized, shop.table(cfg, quantized), conditions, shop.decoder(cfg))
