"""Floor 3: repair of the quantization noise."""

from ptq_diffusion.correction.auto import Auto, Choice
from ptq_diffusion.correction.correction import AskedBatch, Batch, Correction, FitPath, MomentCorrection, PathCorrection
from ptq_diffusion.correction.d2dpm import D2DPM
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection, StepReport
from ptq_diffusion.correction.folding import FoldedLayer, fold
from ptq_diffusion.correction.gated import GatedPTQD
from ptq_diffusion.correction.network import CorrectedNetwork
from ptq_diffusion.correction.none import NoCorrection
from ptq_diffusion.correction.predictor import Predictor
from ptq_diffusion.correction.ptqd import PTQD
from ptq_diffusion.correction.qncd import QNCD
from ptq_diffusion.correction.regression import Regression
from ptq_diffusion.correction.rescaled import Rescaled
from ptq_diffusion.correction.scheduler import CorrectedScheduler
from ptq_diffusion.correction.statistics import Fingerprint, NoiseStatistics, StepMoments
from ptq_diffusion.correction.stepbaq import StepbaQ
from ptq_diffusion.correction.tac import TAC

__all__ = [
    "D2DPM",
    "PTQD",
    "QNCD",
    "TAC",
    "AskedBatch",
    "Auto",
    "Batch",
    "Choice",
    "CorrectedNetwork",
    "CorrectedScheduler",
    "Correction",
    "Fingerprint",
    "FitPath",
    "FittedCorrection",
    "FoldedLayer",
    "GatedPTQD",
    "MomentCorrection",
    "NoCorrection",
    "NoiseStatistics",
    "PathCorrection",
    "Predictor",
    "Regression",
    "Rescaled",
    "StepCorrection",
    "StepMoments",
    "StepReport",
    "StepbaQ",
    "fold",
]
