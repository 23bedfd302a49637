"""Layers' inputs on grids of their own: chosen for what a layer is given, used within a context, and gone after it."""

import pytest
import torch
from torch import nn

from ptq_diffusion.network import (
    InputGrid,
    LayerQuantizers,
    QuantizedConv2d,
    Rescaling,
    regridding,
    rescaled,
)
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, MinMax

MSE = LpSearch(2.0, 80)


def activation(bits, symmetric, seen):
    quantizer = AffineQuantizer(bits, symmetric, False, MinMax(), 256)
    quantizer.observe(seen)
    quantizer.freeze()
    return quantizer


def draw(seed, scale=1.0, shift=0.0):
    return scale * torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) + shift


def network(bits=4, symmetric=False):
    """Two layers whose inputs were calibrated on far wider ones; a third with a float input."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 3, 1).requires_grad_(False) for _ in range(3)]
    quantizers = [activation(bits, symmetric, draw(0, scale=9)), activation(bits, symmetric, draw(1, scale=9)), None]
    layers = zip(convs, quantizers, strict=True)
    return nn.Sequential(*(QuantizedConv2d(conv, LayerQuantizers(None, own)) for conv, own in layers))


def error(quantizer, x):
    return float((quantizer(x) - x).square().sum())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.01, 0.5), (30.0, -4.0)])
def test_a_grid_told_from_an_input_has_a_smaller_error_there_than_the_calibrated_one(bits, symmetric, scale, shift):
    quantizer, x = activation(bits, symmetric, draw(0, scale=9)), draw(1, scale, shift)
    calibrated = error(quantizer, x)
    quantizer.instead = InputGrid.of(x, quantizer, MSE).numbers(quantizer)
    assert error(quantizer, x) < calibrated


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_quantizer_computes_as_one_that_has_the_grid_for_its_own(symmetric):
    quantizer, x = activation(4, symmetric, draw(0, scale=9)), draw(1, shift=0.3)
    grid = InputGrid.of(x, quantizer, MSE)
    other = AffineQuantizer.blank(4, symmetric, False)
    other.adopt({"scale": grid.scale, "zero_point": grid.zero_point})
    quantizer.instead = grid.numbers(quantizer)
    assert torch.equal(quantizer(x), other(x))
    assert not quantizer(torch.zeros(3)).any(), "zero is on every grid"


def test_each_layer_is_given_a_grid_for_what_the_layers_before_it_say():
    layers, x, found = network(), draw(5), {}
    named = dict(layers.named_children())
    with torch.no_grad(), regridding(named, MSE, found):
        within = layers(x)
    assert found.keys() == {"0", "1"}, "a float input has no grid"
    use = {name: Rescaling(torch.ones(3), torch.zeros(3), grid) for name, grid in found.items()}
    with torch.no_grad():
        plain = layers(x)
        with rescaled(layers, use):
            assert torch.equal(layers(x), within)
        assert torch.equal(layers(x), plain) and not torch.equal(plain, within)


@pytest.mark.parametrize("context", ["regridding", "rescaled"])
def test_within_an_error_too_grids_come_back(context):
    layers = network()
    named = dict(layers.named_children())
    grid = InputGrid(torch.tensor([0.5]), torch.tensor([1], dtype=torch.int32))
    use = {"0": Rescaling(torch.ones(3), torch.zeros(3), grid)}
    entered = regridding(named, MSE, {}) if context == "regridding" else rescaled(layers, use)
    with pytest.raises(RuntimeError, match="on the way"), entered:
        layers(draw(5))
        assert layers[0].activation.instead is not None
        raise RuntimeError("on the way")
    assert layers[0].activation.instead is None and not layers[0].activation._forward_pre_hooks


def test_a_grid_for_a_layer_with_a_float_input_is_refused():
    layers, grid = network(), InputGrid(torch.tensor([0.5]), torch.tensor([1], dtype=torch.int32))
    with (
        pytest.raises(ValueError, match="expected 2 to quantize its input .* got Identity; fit it for this network"),
        rescaled(layers, {"0": Rescaling(torch.full((3,), 2.0), torch.zeros(3), grid)} | {"2": _of(grid)}),
    ):
        pass
    assert layers[0].instead is None and layers[0].activation.instead is None


def _of(grid):
    return Rescaling(torch.ones(3), torch.zeros(3), grid)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_between_two_grids_lie_grids_that_hold_zero(weight):
    a, b = (InputGrid(torch.tensor([s]), torch.tensor([z], dtype=torch.int32)) for s, z in ((0.5, -8), (1.5, 7)))
    found = a.lerp(b, weight)
    assert found.zero_point.dtype == torch.int32 and -8 <= int(found.zero_point) <= 7
    assert float(found.scale) == pytest.approx(0.5 + weight)
    for end, own in ((0.0, a), (1.0, b)):
        if weight == end:
            assert torch.equal(found.scale, own.scale) and torch.equal(found.zero_point, own.zero_point)


def test_a_layer_without_a_grid_of_its_own_takes_that_of_its_neighbour():
    grid = InputGrid(torch.tensor([0.5]), torch.tensor([1], dtype=torch.int32))
    bare = Rescaling(torch.ones(3), torch.zeros(3))
    for pair in ((bare, _of(grid)), (_of(grid), bare)):
        assert pair[0].lerp(pair[1], 0.5).input_grid is grid
    assert bare.lerp(bare, 0.5).input_grid is None


@pytest.mark.parametrize(
    "fields",
    [
        {"gain": 3, "offset": 3, "scale": 1},
        {"gain": 3, "offset": 3, "scale": 2, "zero_point": 1},
        {"gain": 3, "offset": 2, "scale": 1, "zero_point": 1},
        {"scale": 1, "zero_point": 1},
    ],
)
def test_fields_that_do_not_belong_together_are_refused(fields):
    with pytest.raises(ValueError, match="a scale and a zero_point of one number or none"):
        Rescaling.of_tensors({name: torch.ones(length) for name, length in fields.items()})
