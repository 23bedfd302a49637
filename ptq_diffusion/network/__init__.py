"""Floor 2: quantizers inside a network."""

from ptq_diffusion.network.input_grid import InputGrid, regridding
from ptq_diffusion.network.insertion import observing, quantize
from ptq_diffusion.network.layer import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.output_layer import OutputLayerTap
from ptq_diffusion.network.quantizers import LayerQuantizers, NetworkQuantizers
from ptq_diffusion.network.rescaling import Rescaling, Spread, rescaled, watching
from ptq_diffusion.network.saving import load_quantized, save_quantized

__all__ = [
    "InputGrid",
    "LayerQuantizers",
    "NetworkQuantizers",
    "OutputLayerTap",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "Rescaling",
    "Spread",
    "load_quantized",
    "observing",
    "quantize",
    "regridding",
    "rescaled",
    "save_quantized",
    "watching",
]
