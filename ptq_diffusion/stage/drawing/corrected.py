"""Sampling a corrected network to the end, chunk by chunk."""

import dataclasses

from ptq_diffusion.correction import CorrectedDenoiser, FittedCorrection
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.model import Condition, Decoder
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.stage.drawing.images import DrawImages


def draw_corrected(
    quantized: QuantizedDenoiser, correction: FittedCorrection, conditions: ConditionSource, decoder: Decoder
) -> DrawImages:
    """The work that draws images of a quantized model with a correction's output, noise scale and step table.

    Args:
        quantized: as its own settings have it.
        correction: fitted to the quantized network.
        conditions: of the samples.
        decoder: from latents to images.
    """
    rescaled = quantized.rescaled(correction.rescalings)

    def corrected(chunk: Chunk, condition: Condition | None) -> CorrectedDenoiser:
        # A correction that asks again draws from streams of its own, so that the images' noise stays what it is.
        apart = dataclasses.replace(chunk, purpose=f"{chunk.purpose}, noised again")
        noise = apart.noise(quantized.shape)
        return CorrectedDenoiser(correction, lambda x_t, step: rescaled.predict(x_t, step, condition), noise)

    return DrawImages(rescaled, correction.steps, conditions, decoder, corrected, correction.sigma)
