"""Floor 2: quantizers inside a network."""

from ptq_diffusion.network.insertion import observing, quantize
from ptq_diffusion.network.layer import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.output_layer import OutputLayerTap
from ptq_diffusion.network.quantizers import LayerQuantizers, NetworkQuantizers

__all__ = [
    "LayerQuantizers",
    "NetworkQuantizers",
    "OutputLayerTap",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "observing",
    "quantize",
]
