"""Floor 3: roundings, which choose the integers of weights."""

from ptq_diffusion.rounding.adaround import AdaRound
from ptq_diffusion.rounding.blocks import BRECQ, BlockReconstruction
from ptq_diffusion.rounding.gptq import GPTQ
from ptq_diffusion.rounding.inputs import Inputs
from ptq_diffusion.rounding.layerwise import LayerReconstruction
from ptq_diffusion.rounding.lsq import LSQ, ScaleReconstruction
from ptq_diffusion.rounding.moments import Moments, MomentStream
from ptq_diffusion.rounding.nearest import Nearest
from ptq_diffusion.rounding.reconstruction import Reconstruction, Subject
from ptq_diffusion.rounding.rounding import LayerRounding, Reads, Rounding, RowProblem
from ptq_diffusion.rounding.scales import ActivationScales, SearchedScales
from ptq_diffusion.rounding.soft import Descent, SoftIntegers
from ptq_diffusion.rounding.step_weights import EffectOnImage, SoftmaxOfEffect, StepWeights, UniformSteps
from ptq_diffusion.rounding.weights import WeightReconstruction

__all__ = [
    "BRECQ",
    "GPTQ",
    "LSQ",
    "ActivationScales",
    "AdaRound",
    "BlockReconstruction",
    "Descent",
    "EffectOnImage",
    "Inputs",
    "LayerReconstruction",
    "LayerRounding",
    "MomentStream",
    "Moments",
    "Nearest",
    "Reads",
    "Reconstruction",
    "Rounding",
    "RowProblem",
    "ScaleReconstruction",
    "SearchedScales",
    "SoftIntegers",
    "SoftmaxOfEffect",
    "StepWeights",
    "Subject",
    "UniformSteps",
    "WeightReconstruction",
]
