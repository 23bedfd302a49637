"""Layers' inputs on grids of their own: chosen for what a layer is given, used at a step, and in no other network."""

import pytest
import torch

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import InputGrid, Rescaling, quantize, regridding
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, MinMax, PerTensor
from tests.network.networks import FLOAT, WEIGHT, by_step, maker, observed, quantized, states, without_hooks
from tests.steps import at

MSE = LpSearch(2.0, 80)


def calibrated(bits, symmetric, seen):
    quantizer = AffineQuantizer(bits, symmetric, PerTensor(), MinMax(), 256)
    quantizer.observe(seen)
    quantizer.freeze()
    return quantizer


def draw(seed, scale=1.0, shift=0.0):
    return scale * torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) + shift


def error(x_hat, x):
    return float((x_hat - x).square().sum())


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module", params=[False, True], ids=["affine", "symmetric"])
def network(denoiser, request):
    """Of two layers with a float input."""
    floats = {"time_embedding.linear_1": LayerBits(4, 32), "conv_out": FLOAT}
    return quantized(denoiser, LayerBits(4, 4), activation=maker(request.param, PerTensor()), **floats)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.01, 0.5), (30.0, -4.0)])
def test_a_grid_for_an_input_has_a_smaller_error_there_than_the_calibrated_one(bits, symmetric, scale, shift):
    grid, x = Grid(bits, symmetric), draw(1, scale, shift)
    before = error(calibrated(bits, symmetric, draw(0, scale=9))(x), x)
    assert error(InputGrid.of(x, grid, MSE).numbers(grid).fake_quantized(x), x) < before


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("search", [MinMax(), MSE], ids=["min-max", "mse"])
def test_a_grid_is_that_of_a_quantizer_which_saw_the_input_alone(symmetric, search):
    grid, x = Grid(4, symmetric), draw(1, shift=0.3)
    own = InputGrid.of(x, grid, search)
    quantizer = AffineQuantizer(4, symmetric, PerTensor(), search, 1024)
    quantizer.observe(x)
    quantizer.freeze()
    assert torch.equal(own.numbers(grid).fake_quantized(3 * x), quantizer(3 * x))
    assert not own.numbers(grid).fake_quantized(torch.zeros(3)).any(), "zero is on every grid"


def test_each_layer_is_given_a_grid_for_what_the_layers_before_it_say(denoiser, network):
    grids, x = {}, states(denoiser)
    plain = network.predict(x, at(500.0)).m
    with regridding(network.layers(), MSE, 0, grids):
        within = network.predict(x, at(500.0)).m
    floats = {"time_embedding.linear_1", "conv_out"}
    assert grids.keys() == set(network.layers()) - floats, "a float input has no grid"
    use = {}
    for name, grid in grids.items():
        ones = torch.ones(network.layer(name).weights[0].shape[0])
        use[name] = Rescaling(ones, torch.zeros_like(ones), grid)
    assert torch.equal(network.at(0, use).predict(x, at(500.0)).m, within)
    assert torch.equal(network.predict(x, at(500.0)).m, plain) and not torch.equal(plain, within)


def test_grids_are_of_the_bits_of_their_step(denoiser):
    plan = by_step(denoiser, [LayerBits(4, 2), LayerBits(4, 8), LayerBits(4, 32)])
    network, x, errors = quantize(denoiser, plan, observed(denoiser), WEIGHT), states(denoiser), []
    layers = {"conv_in": network.layer("conv_in")}
    for i in range(3):
        grids = {}
        with regridding(layers, MSE, i, grids):
            network.predict(x, at(500.0, i))
        errors.append({name: float(grid.scale) for name, grid in grids.items()})
    assert errors[2] == {} and errors[0]["conv_in"] > 10 * errors[1]["conv_in"]


def test_hooks_are_gone_after_an_error(denoiser, network):
    x = states(denoiser)
    expected = network.predict(x, at(500.0)).m
    with pytest.raises(RuntimeError, match="on the way"), regridding(network.layers(), MSE, 0, {}):
        assert not without_hooks(network)
        raise RuntimeError("on the way")
    assert without_hooks(network) and torch.equal(network.predict(x, at(500.0)).m, expected)


def test_a_grid_for_a_layer_with_a_float_input_is_refused(network):
    grid = InputGrid(torch.tensor([0.5]), torch.tensor([1], dtype=torch.int32))
    with pytest.raises(
        ValueError, match="expected conv_out to quantize its input to one grid, .* got a float input; fit it"
    ):
        network.at(0, {"conv_out": _of(grid)})


def _of(grid):
    return Rescaling(torch.ones(3), torch.zeros(3), grid)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_between_two_grids_lie_grids_that_hold_zero(weight):
    a, b = (InputGrid(torch.tensor([s]), torch.tensor([z], dtype=torch.int32)) for s, z in ((0.5, -8), (1.5, 7)))
    between = a.lerp(b, weight)
    assert between.zero_point.dtype == torch.int32 and -8 <= int(between.zero_point) <= 7
    assert float(between.scale) == pytest.approx(0.5 + weight)
    for end, own in ((0.0, a), (1.0, b)):
        if weight == end:
            assert torch.equal(between.scale, own.scale) and torch.equal(between.zero_point, own.zero_point)


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
        {"gain": 3, "offset": 3, "shift": 2},
    ],
)
def test_fields_that_do_not_belong_together_are_refused(fields):
    with pytest.raises(ValueError, match="a scale and a zero_point of one number or none"):
        Rescaling.of_tensors({name: torch.ones(length) for name, length in fields.items()})
