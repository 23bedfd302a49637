"""Floor 2: quantized networks: integers, and settings by step."""

from ptq_diffusion.network.attention import QuantizedAttention
from ptq_diffusion.network.backend import Backend, Integer, Simulated
from ptq_diffusion.network.gain import DeviationRatio, LeastSquares
from ptq_diffusion.network.insertion import quantize
from ptq_diffusion.network.integers import FloatWeight, QuantizedWeight, StoredWeight
from ptq_diffusion.network.layer import CurrentStep, QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.network.observing import InputObservations, watching
from ptq_diffusion.network.quantized import QuantizedDenoiser
from ptq_diffusion.network.regridding import Differences, regridding
from ptq_diffusion.network.rescaling import InputGrid, Rescaling, Spread
from ptq_diffusion.network.saving import load_quantized, save_quantized
from ptq_diffusion.network.step_settings import StepSettings

__all__ = [
    "Backend",
    "CurrentStep",
    "DeviationRatio",
    "Differences",
    "FloatWeight",
    "InputGrid",
    "InputObservations",
    "Integer",
    "LayerSettings",
    "LeastSquares",
    "QuantizedAttention",
    "QuantizedConv2d",
    "QuantizedDenoiser",
    "QuantizedLayer",
    "QuantizedLinear",
    "QuantizedWeight",
    "Rescaling",
    "Simulated",
    "Spread",
    "StepSettings",
    "StoredWeight",
    "load_quantized",
    "quantize",
    "regridding",
    "save_quantized",
    "watching",
]
