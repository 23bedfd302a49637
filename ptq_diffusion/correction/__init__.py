"""Floor 3: repair of the quantization noise."""

from ptq_diffusion.correction.correction import Correction, FittedCorrection, StepReport
from ptq_diffusion.correction.none import NoCorrection
from ptq_diffusion.correction.ptqd import PTQD
from ptq_diffusion.correction.statistics import Fingerprint, NoiseStatistics, StepMoments

__all__ = [
    "PTQD",
    "Correction",
    "Fingerprint",
    "FittedCorrection",
    "NoCorrection",
    "NoiseStatistics",
    "StepMoments",
    "StepReport",
]
