"""Layers of integers equal simulated ones that are given the same input, whatever the layer, its bits and its grids."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import (
    InputGrid,
    Integer,
    QuantizedConv2d,
    Rescaling,
    Simulated,
    quantize,
    save_quantized,
)
from ptq_diffusion.network.backend import onednn
from ptq_diffusion.network.backend.devices import PRODUCTS
from ptq_diffusion.network.backend.integer_layer import IntegerLayer
from ptq_diffusion.network.backend.on_cpu import signed_parts
from ptq_diffusion.network.layer import quantized_layer
from ptq_diffusion.network.saving import FILES
from ptq_diffusion.numeric.grid import FLOAT_BITS
from tests.model.networks import NETWORKS, condition_of, denoiser_of, states_of
from tests.network.backend.layers import EXACT, KINDS, LAYERS, PROVIDERS, difference, layer_of, quick
from tests.network.networks import FLOAT, observed
from tests.steps import at


@pytest.fixture
def integers(monkeypatch):
    """From a simulated layer to its integer ones, by the products of every type of device, computed on the CPU."""

    def of(simulated, x):
        for products in PROVIDERS:
            monkeypatch.setitem(PRODUCTS, "cpu", products)
            integer = Integer().layer(simulated)
            for i in range(len(simulated.settings)):
                simulated.current.i = i
                integer(x)  # A layer keeps the product of every step that it has met.
            yield integer

    return of


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_equals_its_simulation(name, kinds, integers):
    """At every pair of bits and both steps; an affine weight off the middle of its grid needs two parts."""
    for weight_bits, input_bits in itertools.product((2, 3, 4, 6, 8), (2, 4, 8)):
        simulated, x = layer_of(name, weight_bits, input_bits, kinds)
        layers = list(integers(simulated, x))
        for simulated.current.i in (0, 1):
            expected = simulated(x)
            transposed = x.transpose(-1, -2).contiguous().transpose(-1, -2)
            for integer in layers:
                assert difference(integer(x), expected) < EXACT, (weight_bits, input_bits)
                assert torch.equal(integer(transposed), integer(x))
        assert all(Integer().obstacle(layer) is None for layer in (simulated, *layers))


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("integers_of", [onednn.ALL, onednn.HALF], ids=["8-bit products", "sums of 16 bits"])
def test_parts_of_a_weight_add_up_to_it_whatever_products_a_processor_has(integers_of, kinds, integers, monkeypatch):
    monkeypatch.setattr(onednn, "exact_integers", lambda: integers_of)
    low, high = integers_of
    for name, bits in itertools.product(("3x3", "linear"), (4, 8)):
        simulated, x = layer_of(name, bits, 8, kinds)
        parts = signed_parts(simulated.weights[0])
        assert torch.equal(sum(part.int() for part in parts), simulated.weights[0].centred().int())
        assert all(low <= part.min() and part.max() <= high for part in parts)
        if integers_of == onednn.HALF:  # Exact on every processor.
            for integer in integers(simulated, x):
                for simulated.current.i in (0, 1):
                    assert difference(integer(x), simulated(x)) < EXACT


@pytest.mark.parametrize("products", PROVIDERS, ids=lambda products: type(products).__name__)
def test_gains_and_offsets_of_a_step_are_in_scales_and_biases(products, monkeypatch):
    monkeypatch.setitem(PRODUCTS, "cpu", products)
    for name in ("3x3", "groups", "linear"):
        simulated, x = layer_of(name, 4, 8, (True, True, False))
        channels, generator = simulated.weights[0].shape[0], torch.Generator().manual_seed(0)
        rows = [Rescaling(*torch.rand(2, channels, generator=generator).unbind()), None]
        simulated.settings = simulated.settings.rescaled(rows)
        integer = Integer().layer(simulated)
        outputs = []
        for simulated.current.i in (0, 1):
            outputs.append(integer(x))
            assert difference(outputs[-1], simulated(x)) < EXACT
        assert difference(*outputs) > 0.01
        other, _ = layer_of(name, 8, 4, (False, True, False))
        for layer in (simulated, integer):
            layer.weights[0], layer.settings = other.weights[0], other.settings
        assert difference(integer(x), simulated(x)) < EXACT, "other parts in the places of those that it has met"


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_a_shift_of_a_step_is_off_the_codes_and_in_the_bias(kinds, integers):
    """Of layers without a border, whatever else joins the bias; one with a border is refused by name."""
    for name in ("dilated", "1x1", "linear", "linear of one row, without bias"):
        simulated, x = layer_of(name, 4, 4, kinds)
        if name == "dilated":
            simulated.padding = (0, 0)
        channels, inputs = simulated.weights[0].shape[0], x.shape[simulated.channels]
        generator = torch.Generator().manual_seed(0)
        settings = simulated.settings
        shift = (3 * torch.randn(inputs, generator=generator)).view(-1, *[1] * (x.ndim - 2 if x.ndim == 4 else 0))
        grid = InputGrid(settings.scale[:1], settings.zero_point[:1], shift)
        rows = [Rescaling(*torch.rand(2, channels, generator=generator).unbind(), each) for each in (grid, None)]
        simulated.settings = settings.rescaled(rows)
        for integer in integers(simulated, x):
            for simulated.current.i in (0, 1):
                assert difference(integer(x + shift), simulated(x + shift)) < EXACT
        assert Integer().obstacle(simulated) is None
    bordered, x = layer_of("3x3", 4, 4, kinds)
    grid = InputGrid(bordered.settings.scale[:1], bordered.settings.zero_point[:1], torch.ones(8, 1, 1))
    bordered.settings = bordered.settings.rescaled([Rescaling(torch.ones(6), torch.zeros(6), grid), None])
    assert "input are shifted, which its border of zeros is not" in Integer().obstacle(bordered)


def planned(denoiser, rows):
    """The copy with the bits rows[i] of every layer at step i; attention's products are float."""
    plan = BitwidthPlan.by_step(
        [{site.name: bits if site.weighted else FLOAT for site in denoiser.sites()} for bits in rows]
    )
    observations = observed(denoiser, quick(False, False), condition_of(denoiser, 3))
    return quantize(denoiser, plan, observations, quick(True, True))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_every_family_equals_its_simulation_on_the_same_input(name):
    denoiser = denoiser_of(name)
    x, condition = states_of(denoiser), condition_of(denoiser)
    simulated = planned(denoiser, [LayerBits(4, 8), LayerBits(8, 4), FLOAT])
    integer = simulated.to_backend("integer")
    calls = {}
    for name, layer in integer.layers().items():
        layer.register_forward_hook(lambda _, inputs, output, name=name: calls.update({name: (inputs[0], output)}))
    for step in (at(900, 0), at(20, 1), at(5, 2)):
        calls.clear()
        m, features, _ = integer.predict(x, step, condition)
        assert calls.keys() == simulated.layers().keys()
        for name, (given, output) in calls.items():
            layer = simulated.layer(name)
            layer.current.i = step.i
            assert difference(output, layer(given)) < EXACT, name
        expected = simulated.predict(x, step, condition)
        assert difference(m, expected.m) < 0.1 and difference(features, expected.features) < 0.1
    assert torch.equal(m, denoiser.predict(x, step, condition).m)


@pytest.fixture(scope="module")
def pair():
    simulated = planned(denoiser_of("pixels"), [LayerBits(4, 8), LayerBits(4, 4)])
    return simulated, simulated.to_backend(Integer())


def test_backends_share_integers_and_files_and_lead_back(pair, tmp_path):
    simulated, integer = pair
    x = states_of(simulated)
    expected = simulated.predict(x, at(9)).m
    assert not torch.equal(integer.predict(x, at(9)).m, expected)
    assert integer.backend.name == "integer" and simulated.backend.name == "simulated"
    assert all(isinstance(layer, IntegerLayer) for layer in integer.layers().values())
    assert not any(isinstance(layer, IntegerLayer) for layer in simulated.layers().values())
    assert integer.fingerprint() == simulated.fingerprint()
    assert torch.equal(integer.to_backend("simulated").predict(x, at(9)).m, expected)
    assert integer.to_backend("integer") is integer
    for name, layer in integer.layers().items():
        assert layer.weights[0].packed.data_ptr() == simulated.layer(name).weights[0].packed.data_ptr()
    folders = [tmp_path / "simulated", tmp_path / "integer"]
    for folder, network in zip(folders, pair, strict=True):
        folder.mkdir()
        save_quantized(network, folder)
    for name in FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_copies_pickles_and_other_settings_compute_the_same(pair):
    _, integer = pair
    x = states_of(integer)
    expected = [integer.predict(x, at(9, i)).m for i in (0, 1)]
    for copied in (
        copy.deepcopy(integer),
        pickle.loads(pickle.dumps(integer)),
        integer.with_settings(integer.settings),
    ):
        assert all(torch.equal(copied.predict(x, at(9, i)).m, expected[i]) for i in (0, 1))
    assert torch.equal(integer.at(1, {}).predict(x, at(9, 1)).m, expected[1])
    name, layer = next(iter(integer.layers().items()))
    channels = layer.weights[0].shape[0]
    rescaled = integer.rescaled([{name: Rescaling(torch.full((channels,), 2.0), torch.zeros(channels))}, {}])
    assert not torch.equal(rescaled.predict(x, at(9, 0)).m, expected[0])
    assert torch.equal(rescaled.predict(x, at(9, 1)).m, expected[1])
    assert torch.equal(integer.predict(x, at(9, 0)).m, expected[0])


def test_layers_that_it_cannot_compute_are_named(pair):
    denoiser = denoiser_of("pixels")
    for bits, reason in ((LayerBits(4, 32), "input is float at step 1"), (LayerBits(32, 8), "weight is float at step")):
        network = planned(denoiser, [LayerBits(4, 8), bits])
        with pytest.raises(ValueError, match=rf"\d+ of {len(network.layers())} .* conv_in, for its {reason}"):
            network.to_backend("integer")
    sites = denoiser.sites()
    plan = BitwidthPlan.constant({site.name: LayerBits(8, 8) for site in sites})
    network = quantize(denoiser, plan, observed(denoiser, quick(False, False)), quick(True, True))
    with pytest.raises(ValueError, match="the products of attention have quantized operands"):
        network.to_backend("integer")
    with pytest.raises(ValueError, match="expected a backend of simulated, integer, got 'int8'"):
        network.to_backend("int8")
    simulated, _ = pair
    assert all(Simulated().obstacle(part) is None for part in (network.layers() | network.attentions()).values())
    assert all(Integer().obstacle(layer) is None for layer in simulated.layers().values())


def test_only_what_is_known_is_accepted():
    class Another(QuantizedConv2d):
        pass

    layer, _ = layer_of("3x3", 4, 8, (True, True, False))
    plain = nn.Conv2d(8, 6, 3, padding="same")
    weights, settings = list(layer.weights), layer.settings
    named = quantized_layer(plain, weights, None, settings, layer.current)
    assert "its padding is named" in Integer().obstacle(named)
    assert "is neither" in Integer().obstacle(Another(plain, weights, None, settings, layer.current))
    weights[0].scale = torch.ones(6, 2)
    assert "has 12 scales" in Integer().obstacle(layer)
    assert FLOAT_BITS not in (weights[0].bits, settings.bits[0])


def test_integers_are_half_as_large_where_sums_of_all_are_cut_off(monkeypatch):
    for wrong, expected in (((), onednn.ALL), ((onednn.ALL,), onednn.HALF)):
        monkeypatch.setattr(onednn, "_complaint", lambda _, *limits, wrong=wrong: "got sums" * (limits in wrong))
        assert onednn.exact_integers() == expected and onednn.cuts_off_sums() == (expected == onednn.HALF)
    monkeypatch.setattr(onednn, "_complaint", lambda *_: "got AttributeError")
    assert not onednn.cuts_off_sums(), "as torch has no operator that tells"
    with pytest.raises(RuntimeError, match="got AttributeError"):
        onednn.exact_integers()


def test_an_operator_that_is_missing_or_wrong_is_refused_with_one_line(pair, monkeypatch):
    simulated, integer = pair
    with pytest.raises(RuntimeError, match="expected a device of cpu, cuda, .* got meta; set .* backend=simulated"):
        Integer().require(torch.device("meta"))
    linear = onednn.linear
    for product, complaint in ((lambda *_: linear(*_) + 1, "off by up to 1"), (None, "got TypeError")):
        onednn._complaint.cache_clear()
        monkeypatch.setattr(onednn, "linear", product)
        with pytest.raises(RuntimeError, match=f"onednn.qlinear_pointwise .*{complaint}.*set backend=simulated"):
            simulated.to_backend("integer")
    onednn._complaint.cache_clear()
