"""Floor 2: how many bits, where, and when."""

from ptq_diffusion.bitwidth.budget import Budget
from ptq_diffusion.bitwidth.by_role import ByRole
from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.greedy import Greedy
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.random_bits import RandomBits
from ptq_diffusion.bitwidth.sensitivity import Sensitivity
from ptq_diffusion.bitwidth.share import Share
from ptq_diffusion.bitwidth.step_signal import StepSignal
from ptq_diffusion.bitwidth.step_snr import StepSNR

__all__ = [
    "BitwidthPolicy",
    "Budget",
    "ByRole",
    "Evidence",
    "Greedy",
    "RandomBits",
    "Sensitivity",
    "Share",
    "StepSNR",
    "StepSignal",
]
