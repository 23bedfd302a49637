"""Products of 8-bit integers on the CPU and on CUDA GPUs."""

import torch

from ptq_diffusion.network.attention import QuantizedAttention
from ptq_diffusion.network.backend.backend import Backend
from ptq_diffusion.network.backend.devices import products_on
from ptq_diffusion.network.backend.integer_layer import IntegerConv2d, IntegerLayer, IntegerLinear
from ptq_diffusion.network.integers import FloatWeight, QuantizedWeight, StoredWeight
from ptq_diffusion.network.layer import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.network.low_rank import LowRankWeight
from ptq_diffusion.quantizer import PerChannel, PerTensor

INTEGER: dict[type[QuantizedLayer], type[IntegerLayer]] = {
    QuantizedConv2d: IntegerConv2d,
    QuantizedLinear: IntegerLinear,
    IntegerConv2d: IntegerConv2d,
    IntegerLinear: IntegerLinear,
}
"""The integer layer in place of each kind."""
KNOWN = (PerTensor(), PerChannel())
"""The granularities of weights whose scales are those of a layer's outputs."""


class Integer(Backend):
    """y = s_x s_w (sum (u - z) n) + b with 8-bit codes u of the input and n of the weight, summed in 32 bits.

    Equal to simulation up to the rounding of float32 where a layer has the same input. Scales and zero points of the
    input, gains and offsets change from step to step at no cost; weights below 8 bits stay packed at their own width. A
    shift of the input is subtracted before its codes are taken, and its product with the weight is in the bias. Where
    rows of guidance are quantized by their difference, that has codes and a product of its own, which is added to the
    output of the other row.
    """

    name = "integer"

    def require(self, device: torch.device) -> None:
        products_on(device)

    def obstacle(self, part: QuantizedLayer | QuantizedAttention) -> str | None:
        if isinstance(part, QuantizedAttention):
            return "the products of attention have quantized operands, which only simulation multiplies"
        if type(part) not in INTEGER:
            return f"a {type(part).__name__} is neither a convolution nor a linear layer that it knows"
        if isinstance(part, QuantizedConv2d) and not isinstance(part.padding, tuple):
            return f"its padding is named, {part.padding!r}, in place of numbers"
        if type(part.settings) is not LayerSettings or part.settings.scale.ndim != 1:
            return "its input has more than one scale at a step"
        if part.bordered and part.settings.shift is not None:
            return "the channels of its input are shifted, which its border of zeros is not"
        obstacles = (_obstacle_at(part, i) for i in range(len(part.settings)))
        return next((obstacle for obstacle in obstacles if obstacle), None)

    def layer(self, layer: QuantizedLayer) -> QuantizedLayer:
        weights: list[StoredWeight] = list(layer.weights)  # type: ignore[arg-type]
        return INTEGER[type(layer)](layer, weights, layer.bias, layer.settings, layer.current)


def _obstacle_at(layer: QuantizedLayer, i: int) -> str | None:
    weight, grid = layer.weights[layer.settings.weight_copy(i)], layer.settings.grid(i)
    if type(weight) is FloatWeight:
        return None if grid is None else f"its weight is float at step {i}, where its input has {grid.bits} bits"
    if type(weight) is LowRankWeight:
        return "a part of its weight is in 16 bits (quantizer.low_rank.rank)"
    if type(weight) is not QuantizedWeight:
        return f"its weight is a {type(weight).__name__}, which is not known"
    if grid is None:
        return f"its input is float at step {i}, where its weight has {weight.bits} bits"
    if layer.settings.numbers(i) is None:
        return f"its input has no single static grid at step {i}"
    if weight.granularity not in KNOWN or tuple(weight.scale.shape) not in ((1,), weight.shape[:1]):
        return f"its weight has {weight.scale.numel()} scales, neither one nor one for each output channel"
    return None
