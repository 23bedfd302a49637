"""Floor 3: repair of the quantization noise."""

from ptq_diffusion.correction.contract import AskedBatch, Batch, Correction, FitPath, MomentCorrection, PathCorrection
from ptq_diffusion.correction.corrected_denoiser import Predictor
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.method.auto import Auto, Choice
from ptq_diffusion.correction.method.d2dpm import D2DPM
from ptq_diffusion.correction.method.gated import GatedPTQD
from ptq_diffusion.correction.method.none import NoCorrection
from ptq_diffusion.correction.method.ptqd import PTQD
from ptq_diffusion.correction.method.qncd import QNCD
from ptq_diffusion.correction.method.regression import Regression
from ptq_diffusion.correction.method.rescaled import Rescaled
from ptq_diffusion.correction.method.stepbaq import StepbaQ
from ptq_diffusion.correction.method.tac import TAC
from ptq_diffusion.correction.noise.moments import StepMoments
from ptq_diffusion.correction.noise.statistics import Fingerprint, NoiseStatistics
from ptq_diffusion.correction.pipeline.corrected_network import CorrectedNetwork
from ptq_diffusion.correction.pipeline.corrected_scheduler import CorrectedScheduler
from ptq_diffusion.correction.pipeline.folding import FoldedLayer, fold
from ptq_diffusion.correction.step_report import StepReport

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
