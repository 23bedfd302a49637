"""Quantized layers of every kind, with an input of each."""

import itertools

import torch
from torch import nn

from ptq_diffusion.network import CurrentStep, LayerSettings, QuantizedWeight
from ptq_diffusion.network.backend.on_cpu import OnCpu
from ptq_diffusion.network.backend.on_cuda import OnCuda
from ptq_diffusion.network.layer import quantized_layer
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel, PerTensor

LAYERS = {
    "3x3": (nn.Conv2d(8, 6, 3, padding=1), (2, 8, 7, 5)),
    "strided": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 8)),
    "groups": (nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False), (2, 8, 6, 6)),
    "depthwise": (nn.Conv2d(5, 5, 3, padding=1, groups=5), (1, 5, 6, 6)),
    "dilated": (nn.Conv2d(4, 3, 3, dilation=2, padding=(2, 0)), (2, 4, 7, 9)),
    "1x1": (nn.Conv2d(9, 4, 1), (2, 9, 4, 4)),
    "linear": (nn.Linear(33, 7), (2, 5, 33)),
    "linear of one row, without bias": (nn.Linear(16, 5, bias=False), (1, 16)),
}
KINDS = list(itertools.product((True, False), (True, False), (True, False)))
"""Whether weights are symmetric, and per channel, and inputs symmetric."""
PROVIDERS = (OnCpu(), OnCuda(lambda rows, columns: rows.float() @ columns.float()))
"""Products of two types of devices; those of a GPU with a product of matrices that a CPU has."""
EXACT = 1e-6
"""Largest difference, relative to the largest output: float32 is rounded at other places."""


def quick(symmetric, per_channel):
    """From a bitwidth to a quantizer of the whole range, which is made in no time."""
    return lambda bits: AffineQuantizer(bits, symmetric, PerChannel() if per_channel else PerTensor(), MinMax(), 64)


def frozen(symmetric, per_channel, bits, x):
    quantizer = quick(symmetric, per_channel)(bits)
    quantizer.observe(x)
    quantizer.freeze()
    return quantizer


def layer_of(name, weight_bits, input_bits, kinds):
    """A quantized layer with inputs far off zero, whose settings have two steps, and an input."""
    original, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(len(name))
    x = torch.randn(shape, generator=generator) + 0.7
    weight = torch.randn(original.weight.shape, generator=generator) + 0.2
    symmetric_weight, per_channel, symmetric_input = kinds
    stored = QuantizedWeight.of(weight, frozen(symmetric_weight, per_channel, weight_bits, weight))
    grids = [frozen(symmetric_input, False, input_bits, scale * x) for scale in (1.0, 0.6)]
    scale, zero_point = (torch.cat([getattr(grid, part) for grid in grids]) for part in ("scale", "zero_point"))
    columns = (torch.full((2,), input_bits, dtype=torch.int16), scale, zero_point, torch.zeros(2, dtype=torch.int16))
    bias = None if original.bias is None else torch.randn(len(weight), generator=generator)
    return quantized_layer(original, [stored], bias, LayerSettings(*columns, symmetric_input), CurrentStep()), x


def difference(y, expected):
    """Relative to the largest output."""
    return float((y - expected).abs().max() / expected.abs().max())
