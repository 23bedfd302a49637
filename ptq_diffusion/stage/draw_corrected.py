"""Sampling a corrected network to the end, chunk by chunk."""

import dataclasses

from ptq_diffusion.correction import CorrectedDenoiser, FittedCorrection
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import OutputLayerTap
from ptq_diffusion.stage.draw_images import DrawImages


def draw_corrected(quantized: Denoiser, tap: OutputLayerTap, correction: FittedCorrection) -> DrawImages:
    """Draws images of a quantized model with a correction's output, noise scale and step table.

    Args:
        quantized: around a quantized network.
        tap: of the quantized network.
        correction: fitted to the quantized network.
    """

    def predictor(chunk: Chunk) -> CorrectedDenoiser:
        # A correction that asks again draws from streams of its own, so that the images' noise stays what it is.
        apart = dataclasses.replace(chunk, purpose=f"{chunk.purpose}, noised again")
        return CorrectedDenoiser(correction, tap.predict, apart.noise(quantized.shape))

    return DrawImages(quantized, correction.steps, predictor, correction.sigma)
