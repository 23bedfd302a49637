"""Equalised layers: the same float layer, smaller errors where one channel is an outlier, whatever computes them."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ptq_diffusion.model import DiffusersDenoiser, Kind, Role, Site
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import (
    CurrentStep,
    InputObservations,
    Integer,
    QuantizedWeight,
    Rescaling,
    load_quantized,
    quantize,
    regridding,
    save_quantized,
)
from ptq_diffusion.network.equalising import InputMaxima, against_weight
from ptq_diffusion.network.insertion import layer_settings, weight_quantizer
from ptq_diffusion.network.layer import quantized_layer
from ptq_diffusion.network.saving import TENSORS, equalised_layers
from ptq_diffusion.quantizer import DynamicQuantizer, NoEqualisation, PerTensor, PowersOfTwo, SmoothQuant
from tests.network.networks import ACTIVATION, TIMES, WEIGHT, assert_same, by_step, outputs, states, weighted
from tests.steps import at

LAYERS = {
    "convolution": (nn.Conv2d(8, 6, 3, padding=1), (4, 8, 6, 6)),
    "groups": (nn.Conv2d(8, 12, 3, groups=4, bias=False), (4, 8, 6, 6)),
    "linear": (nn.Linear(8, 6), (4, 5, 8)),
}
RULES = [SmoothQuant(), PowersOfTwo()]
PLAN = BitwidthPlan.constant({"0": LayerBits(4, 4)})


def dynamic(bits):
    return DynamicQuantizer(bits, False, PerTensor())


def with_outlier(name):
    """A layer and an input one channel of which is fifty times the others, its weights a fiftieth."""
    layer, shape = copy.deepcopy(LAYERS[name][0]).requires_grad_(False), LAYERS[name][1]
    x, scales = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.ones(8)
    scales[3] = 50.0
    layer.weight.div_(against_weight(scales, layer.weight.shape))
    return layer, x * (scales if x.dim() == 3 else scales.view(8, 1, 1))


def factors_of(layer, x, rule):
    maxima = InputMaxima(sites_of(layer))
    with maxima.observing(nn.Sequential(layer)):
        layer(x)
    return maxima.factors(nn.Sequential(layer), rule)


def sites_of(layer):
    kind = Kind.LINEAR if isinstance(layer, nn.Linear) else Kind.CONV2D
    return [Site("0", kind, Role.LAST, 1, tuple(layer.weight.shape))]


def quantized_with(layer, x, factors, activation=ACTIVATION):
    observations = InputObservations(sites_of(layer), activation)
    observations.equalise(factors)
    with observations.observing(nn.Sequential(layer)):
        layer(x)
    settings = layer_settings(PLAN, "0", observations)
    quantizer = weight_quantizer(layer.weight, 4, WEIGHT, settings.equalisation)
    return quantized_layer(layer, [QuantizedWeight.of(layer.weight, quantizer)], layer.bias, settings, CurrentStep())


def error(layer, quantized, x):
    return float((quantized(x) - layer(x)).square().mean())


@pytest.mark.parametrize("name", LAYERS)
def test_division_and_multiplication_leave_the_float_layer(name):
    """Bit for bit by powers of two."""
    layer, x = with_outlier(name)
    factors, expected = factors_of(layer, x, PowersOfTwo())["0"], layer(x)
    assert factors.numel() == 8 and factors.max() > 1
    layer.weight.mul_(against_weight(factors, layer.weight.shape))
    assert torch.equal(layer(x / factors), expected)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("activation", [ACTIVATION, dynamic], ids=["static", "dynamic"])
def test_an_outlier_costs_an_equalised_layer_less(name, rule, activation):
    layer, x = with_outlier(name)
    plain, equalised = (quantized_with(layer, x, factors, activation) for factors in ({}, factors_of(layer, x, rule)))
    assert error(layer, equalised, x) < 0.5 * error(layer, plain, x)


class Given(SmoothQuant):
    """A rule that gives what it was made of."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def factors(self, inputs, weights):  # noqa: ARG002
        return self.numbers


@pytest.mark.parametrize(
    "numbers",
    [
        torch.ones(7),
        torch.ones(8, 1),
        torch.ones(8).double(),
        torch.zeros(8),
        -torch.ones(8),
        torch.full((8,), torch.nan),
    ]
    + [torch.full((8,), number) for number in (torch.inf, 1e-42)],
)
def test_factors_that_are_none_are_refused_by_the_layers_name(numbers):
    layer, x = with_outlier("linear")
    with pytest.raises(
        ValueError, match=r"expected 8 positive float32 numbers .*that 0 reads, .*quantizer.equalisation"
    ):
        factors_of(layer, x, Given(numbers))


@pytest.mark.parametrize("name", LAYERS)
def test_factors_of_one_change_no_bit(name):
    layer, x = with_outlier(name)
    plain, ones = (quantized_with(layer, x, factors) for factors in ({}, factors_of(layer, x, NoEqualisation())))
    assert ones.settings.equalisation is not None and torch.equal(ones(x), plain(x))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", RULES)
def test_integers_equal_the_simulation(name, rule):
    layer, x = with_outlier(name)
    simulated = quantized_with(layer, x, factors_of(layer, x, rule))
    assert Integer().obstacle(simulated) is None
    expected = simulated(x)
    assert float((Integer().layer(simulated)(x) - expected).abs().max() / expected.abs().max()) < 1e-6


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def equalised(denoiser):
    """A network of three steps, at the second of which inputs are float, as those of two layers are throughout."""
    maxima, observations = InputMaxima(denoiser.sites()), InputObservations(denoiser.sites(), ACTIVATION)

    def observe(observer):
        with observer.observing(denoiser.network):
            for t in TIMES:
                denoiser.predict(states(denoiser), at(t))

    observe(maxima)
    observations.equalise(maxima.factors(denoiser.network, SmoothQuant()))
    observe(observations)
    floats = {"conv_out": LayerBits(4, 32), "time_embedding.linear_1": LayerBits(32, 32)}
    plan = by_step(denoiser, [LayerBits(4, 4), LayerBits(4, 32), LayerBits(32, 8)], **floats)
    return quantize(denoiser, plan, observations, WEIGHT)


def test_a_network_comes_back_bit_for_bit(denoiser, equalised, tmp_path):
    save_quantized(equalised, tmp_path)
    names = {site.name for site in weighted(denoiser)} - {"conv_out", "time_embedding.linear_1"}
    assert set(equalised_layers(tmp_path)) == names, "a layer whose input is float throughout has no factors"
    assert_same(equalised, load_quantized(tmp_path), 3)


DAMAGED = {
    "too few": lambda f: f[:-1].contiguous(),
    "negative": lambda f: -f,
    "half": lambda f: f.half(),
    "flat": lambda f: f.flatten(),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_factors_that_no_layer_has_are_refused(equalised, tmp_path, damage):
    save_quantized(equalised, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    tensors["equalisation/conv_in"] = damage(tensors["equalisation/conv_in"])
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(ValueError, match=r"other or broken files \(ValueError: expected (factors|positive scales)"):
        load_quantized(tmp_path)


def test_rescaled_layers_are_fitted_on_top(equalised, denoiser):
    """Grids of a step are of equalised inputs, and used at that step alone."""
    x, layers, grids = 3 * states(denoiser), {"conv_in": equalised.layer("conv_in")}, {}
    with regridding(layers, ACTIVATION(4).range_search, 0, grids):
        within = equalised.predict(x, at(500.0)).m
    ones = torch.ones(len(layers["conv_in"].operands(0)[0]))
    rescalings = {"conv_in": Rescaling(ones, torch.zeros_like(ones), grids["conv_in"])}
    rescaled = equalised.rescaled([rescalings, {}, {}])
    assert torch.equal(rescaled.predict(x, at(500.0)).m, within)
    assert not torch.equal(equalised.predict(x, at(500.0)).m, within)
    assert torch.equal(equalised.at(0, rescalings).predict(x, at(500.0)).m, within)
    assert torch.equal(outputs(rescaled, 1), outputs(equalised, 1))
    twice = equalised.at(0, {"conv_in": Rescaling(2 * ones, torch.zeros_like(ones))}).layer("conv_in").operands(0)
    weight, bias = layers["conv_in"].operands(0)
    assert torch.allclose(twice[0], 2 * weight) and torch.equal(twice[1], 2 * bias)
