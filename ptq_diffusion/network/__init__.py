"""Floor 2: quantizers inside a network."""

from ptq_diffusion.network.insertion import observing, quantize
from ptq_diffusion.network.layer import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.output_layer import OutputLayerTap
from ptq_diffusion.network.quantizers import LayerQuantizers, NetworkQuantizers
from ptq_diffusion.network.saved import load_quantized, save_quantized

__all__ = [
    "LayerQuantizers",
    "NetworkQuantizers",
    "OutputLayerTap",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "load_quantized",
    "observing",
    "quantize",
    "save_quantized",
]
