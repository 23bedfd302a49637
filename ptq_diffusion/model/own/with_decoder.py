"""Denoisers of latents that bring their decoder along."""

from abc import ABC, abstractmethod

from ptq_diffusion.model.decoder import Decoder, Pixels
from ptq_diffusion.model.denoiser import Denoiser


class WithDecoder(ABC):
    """A second base of a denoiser whose states are latents; one without it denoises pixels."""

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """The way from states to images; its checksum covers its weights."""


def decoder_of(model: Denoiser) -> Decoder:
    """The decoder that a network of the user's own brings along; `Pixels` of one that denoises pixels."""
    return model.decoder if isinstance(model, WithDecoder) else Pixels()
