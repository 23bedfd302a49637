"""The works that draw all variants of a model from the same noise, for stages that compare them step by step."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.metric import FLOAT
from ptq_diffusion.stage.drawing.corrected import draw_corrected
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.quantize import Quantize

COMPARED = ("quantized", "corrected")
"""The variants that are compared with `FLOAT`."""


def works_of_variants(cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> dict[str, DrawImages]:
    """The work that draws each variant, that of `FLOAT` first.

    Args:
        cfg: names the model, its condition and the sampler.
        inputs: the artefacts of `Quantize` and `Fit`, and prompts where the condition is prompts.
        shop: builds the networks.
    """
    model, quantized = shop.guided(cfg, inputs), shop.quantized(cfg, inputs[Quantize.name])
    conditions, decoder = shop.conditions(cfg, model, inputs), shop.decoder(cfg)
    correction, table = FittedCorrection.load(inputs[Fit.name]), shop.table(cfg, model)
    works = [DrawImages.of(network, table, conditions, decoder) for network in (model, quantized)]
    works.append(draw_corrected(quantized, correction, conditions, decoder))
    return dict(zip((FLOAT, *COMPARED), works, strict=True))
