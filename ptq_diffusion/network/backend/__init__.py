"""Backends: how the layers of a quantized network are computed."""

from ptq_diffusion.network.backend.backend import Backend
from ptq_diffusion.network.backend.integer import Integer
from ptq_diffusion.network.backend.simulated import Simulated

__all__ = ["Backend", "Integer", "Simulated"]
