"""Floor 2: how many bits, and where."""

from ptq_diffusion.bitwidth.by_role import ByRole
from ptq_diffusion.bitwidth.policy import BitwidthPolicy

__all__ = ["BitwidthPolicy", "ByRole"]
