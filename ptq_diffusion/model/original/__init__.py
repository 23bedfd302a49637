"""Checkpoints of the original latent-diffusion code, and their conversion to diffusers folders.

Rombach et al., CVPR 2022, arXiv 2112.10752.
"""

from ptq_diffusion.model.original.conversion import Conversion, convert

__all__ = ["Conversion", "convert"]
