"""Sampling a corrected network to the end, chunk by chunk."""

import dataclasses

from ptq_diffusion.correction import CorrectedDenoiser, FittedCorrection
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.stage.drawing.images import DrawImages


def draw_corrected(quantized: QuantizedDenoiser, correction: FittedCorrection) -> DrawImages:
    """The work that draws images of a quantized model with a correction's output, noise scale and step table.

    Args:
        quantized: as its own settings have it.
        correction: fitted to the quantized network.
    """
    rescaled = quantized.rescaled(correction.rescalings)

    def corrected(chunk: Chunk) -> CorrectedDenoiser:
        # A correction that asks again draws from streams of its own, so that the images' noise stays what it is.
        apart = dataclasses.replace(chunk, purpose=f"{chunk.purpose}, noised again")
        return CorrectedDenoiser(correction, rescaled.predict, apart.noise(quantized.shape))

    return DrawImages(rescaled, correction.steps, corrected, correction.sigma)
