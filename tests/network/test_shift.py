"""Shifts of input channels at a step: what they leave as it is, what they spare, and what is refused."""

import pytest
import torch
from torch import nn

from ptq_diffusion.correction import Rescaled
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import CurrentStep, FloatWeight, InputGrid, LayerSettings, Rescaling, regridding
from ptq_diffusion.network.equalising import summed_by_output
from ptq_diffusion.network.layer import quantized_layer
from ptq_diffusion.network.regridding import shift_of_input
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import NO_SHIFT, Dither, LpSearch, MeanShift, MidRangeShift, MinMax
from tests.network.networks import outputs, quantized, states
from tests.steps import at

LAYERS = {
    "linear": (nn.Linear(6, 5), (4, 7, 6)),
    "1x1": (nn.Conv2d(6, 4, 1), (4, 6, 5, 5)),
    "3x3 without border": (nn.Conv2d(6, 4, 3), (4, 6, 7, 5)),
    "groups": (nn.Conv2d(6, 4, (1, 3), groups=2, bias=False), (4, 6, 5, 7)),
    "3x3 with border": (nn.Conv2d(6, 4, 3, padding=1), (4, 6, 5, 5)),
}
RULES = [MidRangeShift(), MeanShift()]


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def network(denoiser):
    return quantized(denoiser, LayerBits(8, 4))


def apart(shape, channels):
    """An input whose channels lie around different middles."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x + 10 * torch.linspace(-1, 1, shape[channels]).view(-1, *[1] * (x.ndim - 2 if channels == 1 else 0))


def bare(name, bits, equalisation=None):
    """A layer with its float weight, and an input."""
    layer, shape = LAYERS[name]
    row = torch.tensor([bits], dtype=torch.int16), torch.ones(1), torch.zeros(1, dtype=torch.int32)
    settings = LayerSettings(*row, torch.zeros(1, dtype=torch.int16), False, equalisation=equalisation)
    bias = None if layer.bias is None else layer.bias.detach()
    made = quantized_layer(layer, [FloatWeight(layer.weight.detach())], bias, settings, CurrentStep())
    return made, apart(shape, made.channels)


def regridded(layer, bits, x, shift, gain=1.0):
    """The layer on a grid of its own."""
    outputs = len(layer.weights[0].values())
    grid = InputGrid.of(layer.settings.equalised(x), Grid(bits, False), MinMax(), shift)
    rescaling = Rescaling(torch.full((outputs,), gain), torch.linspace(-1, 1, outputs), grid)
    settings = layer.settings.rescaled([rescaling])
    return type(layer)(layer, list(layer.weights), layer.bias, settings, CurrentStep()), rescaling


def middle(layer, x, rule):
    """The rule's shift, of a layer with a border too."""
    rows = x.movedim(layer.channels, -1).flatten(0, -2)
    return rule.of(rows).view(-1, *[1] * (x.ndim - 2 if layer.channels == 1 else 0))


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_left_of_a_shift_is_the_error_of_its_grid(name):
    """The layer says what the float one does, within half a step of each number of its input: zeros outside stay 0."""
    layer, x = bare(name, 8)
    exact = layer.compute(x, *layer.operands(0))
    for rule in RULES:
        shifted, rescaling = regridded(layer, 8, x, middle(layer, x, rule), gain=0.7)
        weight = layer.weights[0].values()
        bound = 0.51 * float(rescaling.input_grid.scale) * 0.7 * weight.abs().flatten(1).sum(1).max()
        assert (shifted(x) - rescaling.of(exact, layer.channels)).abs().max() < bound
        assert torch.allclose(shifted.settings(x, 0), x, atol=0.51 * float(rescaling.input_grid.scale))


@pytest.mark.parametrize("name", LAYERS)
def test_channels_that_lie_apart_share_a_narrow_grid_only_when_shifted(name):
    layer, x = bare(name, 4)
    exact = layer.compute(x, *layer.operands(0))
    shifts = [None, *(middle(layer, x, rule) for rule in RULES)]
    plain, *ours = (
        float((rescaling.of(exact, layer.channels) - made(x)).square().mean())
        for made, rescaling in (regridded(layer, 4, x, shift) for shift in shifts)
    )
    assert all(error < plain / 4 for error in ours)


def test_a_shift_of_zero_gives_the_same_bits(network):
    shifted, plain = {}, {}
    for name, layer in network.inner_layers().items():
        x_shape = (layer.weights[0].shape[1], *[1] * (layer.weights[0].values().ndim - 2))
        own = layer.settings.scale[:1] * 1.3, layer.settings.zero_point[:1]
        both = torch.full_like(layer.bias, 1.1), torch.zeros_like(layer.bias)
        plain[name] = Rescaling(*both, InputGrid(*own))
        shifted[name] = Rescaling(*both, InputGrid(*own, torch.zeros(x_shape)))
    assert torch.equal(outputs(network.at(0, shifted)), outputs(network.at(0, plain)))
    moved = network.at(0, {"conv_in": Rescaling(*both_of(network), InputGrid(*own_of(network), torch.ones(3, 1, 1)))})
    assert not torch.equal(outputs(moved), outputs(network))


def both_of(network):
    bias = network.layer("conv_in").bias
    return torch.ones_like(bias), torch.zeros_like(bias)


def own_of(network):
    settings = network.layer("conv_in").settings
    return settings.scale[:1], settings.zero_point[:1]


@pytest.mark.parametrize("rule", [*RULES, Dither(), Dither(MeanShift())], ids=["mid", "mean", "dither", "both"])
def test_layers_without_a_border_are_shifted_for_what_the_layers_before_say(network, denoiser, rule):
    x, grids, plain = states(denoiser), {}, {}
    with regridding(network.layers(), LpSearch(2.0, 80), 0, plain):
        network.predict(x, at(500.0))
    with regridding(network.layers(), LpSearch(2.0, 80), 0, grids, rule):
        within = network.predict(x, at(500.0)).m
    shifted = {name for name, grid in grids.items() if grid.shift is not None}
    assert all(grid.shift is None for grid in plain.values()) and grids.keys() == plain.keys()
    # What is computed of the time alone is the same in all images.
    bordered = {name for name, layer in network.layers().items() if layer.bordered}
    of_time = {name for name in grids if "time_emb" in name}
    left = of_time if rule.shifts_bordered else of_time | bordered
    assert shifted == grids.keys() - left and bordered and of_time and shifted
    use = {}
    for name, grid in grids.items():
        ones = torch.ones(network.layer(name).weights[0].shape[0])
        use[name] = Rescaling(ones, torch.zeros_like(ones), grid)
    assert torch.equal(network.rescaled([{}, use, use]).predict(x, at(500.0, 1)).m, within)
    assert torch.equal(network.rescaled([{}, use]).predict(x, at(500.0, 0)).m, network.predict(x, at(500.0)).m)


def test_a_shift_is_of_an_equalised_input():
    factors = torch.tensor([0.5, 1.0, 2.0, 4.0, 1.0, 8.0])
    layer, x = bare("linear", 8, factors)
    shift = shift_of_input(layer, layer.settings.equalised(x), MeanShift())
    assert torch.allclose(shift, (x / factors).mean((0, 1)), atol=1e-5)
    shifted, rescaling = regridded(layer, 8, x, shift)
    assert torch.allclose(shifted.settings(x, 0), x, atol=0.51 * 8 * float(rescaling.input_grid.scale))
    assert torch.equal(shifted.settings.shifted(x, 0), layer.settings.equalised(x) - shift)


def test_an_input_that_is_the_same_in_every_image_is_not_shifted():
    layer, x = bare("linear", 4)
    assert shift_of_input(layer, x[:1].expand(4, 7, 6), MeanShift()) is None
    assert shift_of_input(layer, x[:1], MeanShift()) is None
    assert shift_of_input(layer, x, NO_SHIFT) is None
    assert shift_of_input(layer, x, MeanShift()) is not None


@pytest.mark.parametrize("name", [name for name in LAYERS if "with border" not in name])
def test_the_product_of_weight_and_shift_is_a_bias(name):
    layer, x = bare(name, 8)
    shift = middle(layer, x, MeanShift())
    weight = layer.weights[0].values()
    expected = layer.compute(x, weight, None) - layer.compute(x - shift, weight, None)
    constant = summed_by_output(weight, shift).float().view(-1, *[1] * (x.ndim - 2 if layer.channels == 1 else 0))
    assert torch.allclose(expected, constant.expand_as(expected), atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_between_shifted_grids_lie_shifts(weight):
    scale, zero_point = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    two, four, none = (
        InputGrid(scale, zero_point, shift) for shift in (torch.full((3, 1, 1), 2.0), torch.full((3, 1, 1), 4.0), None)
    )
    assert torch.equal(two.lerp(four, weight).shift, torch.full((3, 1, 1), 2 + 2 * weight))
    assert torch.equal(two.lerp(none, weight).shift, torch.full((3, 1, 1), 2 - 2 * weight))
    assert torch.equal(none.lerp(two, weight).shift, torch.full((3, 1, 1), 2 * weight))
    assert none.lerp(none, weight).shift is None


def test_a_shift_without_a_grid_or_of_other_channels_is_refused(network):
    with pytest.raises(ValueError, match=r"range search beside a shift .*; set shift@correction.shift=none"):
        Rescaled(None, shift=MeanShift())
    for shape in ((4, 1, 1), (3,), (3, 3, 1)):
        use = Rescaling(*both_of(network), InputGrid(*own_of(network), torch.ones(shape)))
        with pytest.raises(ValueError, match=r"conv_in whose input has a shift of .*, got one of \(3, 1, 1\); fit it"):
            network.at(0, {"conv_in": use})


def test_a_dither_moves_the_grid_by_about_half_its_scale_and_another_way_at_every_step(network, denoiser):
    """Of the scale without it, from which the one that is sought again differs by less than a half."""
    found = []
    for i in (0, 1):
        grids = {}
        with regridding(network.layers(), LpSearch(2.0, 80), i, grids, Dither()):
            network.predict(states(denoiser), at(500.0, i))
        found.append({name: grid for name, grid in grids.items() if grid.shift is not None})
    assert found[0].keys() == found[1].keys()
    for name, grid in found[0].items():
        assert grid.shift.abs().max() < 0.5 * 1.5 * float(grid.scale)
        assert not torch.allclose(grid.shift, found[1][name].shift, atol=0.01 * float(grid.scale))
