"""Backends: how the layers of a quantized network are computed."""

from ptq_diffusion.network.backend.backend import Backend, require_float32
from ptq_diffusion.network.backend.integer import Integer
from ptq_diffusion.network.backend.simulated import Simulated

__all__ = ["Backend", "Integer", "Simulated", "require_float32"]
