"""Floor 3: repair of the quantization noise."""

from ptq_diffusion.correction.contract import Correction, Reads
from ptq_diffusion.correction.corrected_denoiser import CorrectedDenoiser
from ptq_diffusion.correction.evidence import MomentEvidence, PairedBatch, PathBatch, PathEvidence
from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.fitting import fit_moments
from ptq_diffusion.correction.layer_rules import AtOnce, EachStep, InSequence, PooledSteps
from ptq_diffusion.correction.method.auto import Auto, Choice
from ptq_diffusion.correction.method.chain import Chain
from ptq_diffusion.correction.method.d2dpm import D2DPM
from ptq_diffusion.correction.method.dns import DNS
from ptq_diffusion.correction.method.gated import GatedPTQD
from ptq_diffusion.correction.method.matched import Matched
from ptq_diffusion.correction.method.none import NoCorrection
from ptq_diffusion.correction.method.path_ptqd import PathPTQD
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
from ptq_diffusion.correction.pipeline.flow_networks import CorrectedFlux, CorrectedSana, CorrectedSD3
from ptq_diffusion.correction.pipeline.folding import FoldedLayer, fold
from ptq_diffusion.correction.step_report import StepReport

__all__ = [
    "AtOnce",
    "Auto",
    "Chain",
    "Choice",
    "CorrectedDenoiser",
    "CorrectedFlux",
    "CorrectedNetwork",
    "CorrectedSD3",
    "CorrectedSana",
    "CorrectedScheduler",
    "Correction",
    "D2DPM",
    "DNS",
    "EachStep",
    "Fingerprint",
    "FittedCorrection",
    "FoldedLayer",
    "GatedPTQD",
    "InSequence",
    "Matched",
    "MomentEvidence",
    "NoCorrection",
    "NoiseStatistics",
    "PTQD",
    "PairedBatch",
    "PathBatch",
    "PathEvidence",
    "PathPTQD",
    "PooledSteps",
    "QNCD",
    "Reads",
    "Regression",
    "Rescaled",
    "StepCorrection",
    "StepMoments",
    "StepReport",
    "StepbaQ",
    "TAC",
    "fit_moments",
    "fold",
]
