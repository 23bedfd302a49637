"""A filter folded into the output layer says what the layer and the filter behind it say."""

import dataclasses
import itertools

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from ptq_diffusion.correction import PairedBatch, PathEvidence, Regression, StepCorrection, fold
from ptq_diffusion.correction.repair.filter import Filter, FilterInt8
from ptq_diffusion.correction.repair.spectral import Spectral
from ptq_diffusion.network import (
    CurrentStep,
    FloatWeight,
    LayerSettings,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedWeight,
)
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel
from ptq_diffusion.sampler import DDIM

C, F = 2, 5
NOTHING = torch.zeros(C, 0, 1, 1)
SIDES = [(q, x, r) for q, x, r in itertools.product((0, 1), (0, 1, 3), (1, 3, 5))]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantized_layer(outputs=C, bias=True, dtype=torch.float64, **options):
    layer = nn.Conv2d(F, outputs, 3, **{"padding": 1} | options, bias=bias).requires_grad_(False)
    layer.weight.copy_(draw(*layer.weight.shape, seed=1))
    weight = AffineQuantizer(4, True, PerChannel(), MinMax(), 4)
    weight.observe(layer.weight)
    weight.freeze()
    values = FloatWeight(QuantizedWeight.of(layer.weight, weight).values().to(dtype))
    return QuantizedConv2d(layer, [values], None if layer.bias is None else layer.bias.to(dtype), *float_input())


def float_input():
    """Settings of a layer whose input is float, and the step that it is asked about."""
    row = {name: torch.tensor([number]) for name, number in (("bits", 32), ("zero_point", 0), ("copy", 0))}
    return LayerSettings(scale=torch.ones(1), symmetric=True, **row), CurrentStep()


def said(layer, h):
    """The layer's output on a quantized input."""
    return layer.compute(h, *layer.operands(0))


def kernel(side, inputs, seed):
    return 0.3 * draw(C, inputs, side, side, seed=seed) if side else NOTHING.double()


def a_filter(on_q, on_x, on_features):
    kernels = kernel(on_q, C, 2), kernel(on_x, C, 3), kernel(on_features, F, 4)
    return Filter(*kernels, draw(C, seed=5))


def step(*repairs):
    return StepCorrection(repairs, 0.0, None)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("outputs", "bias"), [(C, True), (2 * C, True), (C, False)])
def test_folded_equals_unfolded(sides, outputs, bias):
    layer, h, x = quantized_layer(outputs, bias), draw(3, F, 9, 8, seed=6), draw(3, C, 9, 8, seed=7)
    found = step(a_filter(*sides), Spectral(draw(17, C, C), draw(17, C, C, seed=8), draw(C)))
    q = said(layer, h)[:, :C]
    folded, unfolded = fold(layer, 0, found, C).output(x, h), found.output(q, x, h)
    assert torch.allclose(folded, unfolded, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(folded, step(*found.repairs[1:]).output(q, x, h), atol=1e-3)


def test_a_readout_in_eight_bits_folds_like_any_other():
    layer, h, x = quantized_layer(), draw(3, F, 9, 8, seed=6), draw(3, C, 9, 8, seed=7)
    integers = torch.randint(-127, 128, (C, F, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    found = step(FilterInt8(kernel(1, C, 2), kernel(3, C, 3), integers, torch.tensor([0.01, 0.02]).double(), draw(C)))
    unfolded = found.output(said(layer, h)[:, :C], x, h)
    assert torch.allclose(fold(layer, 0, found, C).output(x, h), unfolded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("on_q", [NOTHING, torch.zeros(C, C, 1, 1)])
def test_a_refit_of_nothing_is_the_quantized_layer_bit_for_bit(on_q):
    layer, h = quantized_layer(dtype=torch.float32), draw(3, F, 9, 8).float()
    folded = fold(layer, 0, step(Filter(on_q, NOTHING, torch.zeros(C, F, 3, 3), torch.zeros(C))), C)
    assert torch.equal(folded.output(h, h), said(layer, h))
    assert torch.equal(folded.weight, layer.operands(0)[0]) and torch.equal(folded.bias, layer.bias)
    assert torch.equal(fold(layer, 0, step(), C).output(h, h), said(layer, h))


def test_readout_of_features_that_say_nothing_is_wiener():
    q, x, m = (draw(40, C, 9, 8, seed=seed) for seed in range(3))
    batch = PairedBatch(0, q, x, torch.zeros(40, F, 9, 8).double(), m, x, m)
    row = DDIM(8, 1.0, {}).table({**DDPMScheduler(clip_sample=False).config})[3]
    options = {"on_q": 1, "on_x": 3, "ridges": [0.01], "variance": "rule", "path": "float"}
    methods = Regression(on_features=3, **options, readout_bits=32), Regression(on_features=0, **options)
    readout, wiener = (method.fit_step(PathEvidence([batch]), row) for method in methods)
    assert not readout.repairs[0].on_features.any()
    assert readout.sigma == pytest.approx(wiener.sigma, rel=1e-12)
    ours, theirs = (found.output(q, x, batch.features) for found in (readout, wiener))
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    without = dataclasses.replace(readout.repairs[0], on_features=NOTHING.double())
    assert torch.equal(ours, without.output(q, x, batch.features))


def test_what_does_not_fold_is_refused():
    with pytest.raises(ValueError, match="K_q of one pixel, got 3 x 3; fit the correction with on_q=1 or 0"):
        fold(quantized_layer(), 0, step(a_filter(3, 1, 3)), C)
    float_linear = nn.Linear(F, C).requires_grad_(False)
    linear = QuantizedLinear(float_linear, [FloatWeight(float_linear.weight)], float_linear.bias, *float_input())
    for layer in (linear, quantized_layer(padding=0), quantized_layer(stride=2)):
        with pytest.raises(ValueError, match="a convolution and keeps the size"):
            fold(layer, 0, step(a_filter(1, 1, 3)), C)
