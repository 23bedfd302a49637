"""Bases of networks of the user's own."""

from ptq_diffusion.model.own.module_denoiser import ModuleDenoiser
from ptq_diffusion.model.own.with_decoder import WithDecoder, decoder_of

__all__ = ["ModuleDenoiser", "WithDecoder", "decoder_of"]
