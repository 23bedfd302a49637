"""Layers are given the means and deviations of the float network's, where that brings the output nearer."""

import copy
from types import MappingProxyType, SimpleNamespace

import pytest
import torch
from torch import nn

from ptq_diffusion.correction import Rescaled
from ptq_diffusion.correction.method import rescaled as rescaled_module
from ptq_diffusion.correction.method.rescaled import rescalings_towards
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.network import (
    LayerQuantizers,
    OutputLayerTap,
    QuantizedLayer,
    Rescaling,
    Spread,
    quantize,
    rescaled,
    watching,
)
from ptq_diffusion.quantizer import LpSearch
from tests.correction.pipelines import states
from tests.steps import at

ALONE = Rescaled(None, 64, "corrected")


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def unquantized(model):
    """A copy of the quantized kind whose operands are all float."""
    none = SimpleNamespace(layers={site.name: LayerQuantizers(None, None) for site in model.sites()})
    return model.with_network(quantize(model.network, none))


@pytest.fixture
def distorted(unquantized):
    """The copy with another scale and bias of every layer's channels but the output layer's."""
    network = copy.deepcopy(unquantized.network)
    draw = torch.Generator().manual_seed(0)
    for name, layer in layers_of(network).items():
        if name != "conv_out":
            shape = (-1, *[1] * (layer.weight.ndim - 1))
            gain = 1 + 0.3 * torch.rand(len(layer.weight), generator=draw)
            layer.weight = layer.weight * gain.view(shape)
            layer.bias = nn.Parameter(layer.bias * gain + 0.2 * torch.randn(len(gain), generator=draw))
    return unquantized.with_network(network)


def layers_of(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantizedLayer)}


def spread(tap, name, output):
    return Spread.of(output, tap.other_layers()[name].channels)


def three_of_four(x):
    return x.unflatten(0, (-1, 4))[:, :3].flatten(0, 1)


def outputs(network, ask, names):
    """What layers say within a forward."""
    seen = {}
    with torch.no_grad(), watching(network, names, seen.__setitem__):
        ask()
    return seen


def test_distorted_scales_and_biases_of_all_layers_are_found(model, distorted):
    x, unseen = states(model, 0)[:32], states(model, 1)[:8]
    tap = OutputLayerTap(distorted, model.sites())
    with torch.no_grad():
        found, _ = ALONE.rescalings(model, tap, x, at(300.0))
        assert found.keys() == layers_of(distorted.network).keys() - {"conv_out"}
        m, q = model.predict(unseen, at(300.0)).m, distorted.predict(unseen, at(300.0)).m
        repaired, _ = tap.predict(unseen, at(300.0), found)
    assert torch.allclose(repaired, m, atol=1e-5)
    assert (q - m).abs().max() > 0.1


def test_a_network_without_noise_has_nothing_to_rescale(model, unquantized):
    tap, x = OutputLayerTap(unquantized, model.sites()), states(model, 0)[:16]
    said = outputs(model.network, lambda: model.predict(x, at(300.0)).m, tap.other_layers())
    with torch.no_grad():
        found = rescalings_towards(
            {name: spread(tap, name, output) for name, output in said.items()}, tap, x, at(300.0), None
        )
    assert found.keys() == said.keys()
    for own in found.values():
        assert torch.allclose(own.gain, torch.ones_like(own.gain), atol=1e-5)
        assert torch.allclose(own.offset, torch.zeros_like(own.offset), atol=1e-5)


def test_three_of_four_images_are_fitted_and_the_fourth_judges(pair):
    tap, x, asked = OutputLayerTap(pair[1], pair[0].sites()), states(pair[0], 0)[:16], []

    def predict(x_t, step, rescalings=MappingProxyType({})):
        asked.append((x_t, bool(rescalings)))
        return tap.predict(x_t, step, rescalings)

    recorded = SimpleNamespace(network=tap.network, other_layers=tap.other_layers, predict=predict)
    with torch.no_grad():
        found, m = ALONE.rescalings(pair[0], recorded, x, at(300.0))
        assert found and torch.equal(m, pair[0].predict(x, at(300.0)).m)
    expected = [(three_of_four(x), False), (x[3::4], False), (x[3::4], True)]
    for (given, used), (wanted, rescales) in zip(asked, expected, strict=True):
        assert torch.equal(given, wanted) and used is rescales


def test_rescaled_layers_have_the_means_and_deviations_of_the_float_ones(pair):
    model, quantized = pair
    tap, x = OutputLayerTap(quantized, model.sites()), states(model, 0)[:16]
    with torch.no_grad():
        found, _ = ALONE.rescalings(model, tap, x, at(300.0))
    assert found
    x = three_of_four(x)
    target = outputs(model.network, lambda: model.predict(x, at(300.0)).m, found)
    plain, ours = (
        outputs(quantized.network, lambda use=use: tap.predict(x, at(300.0), use), found) for use in ({}, found)
    )
    for name, output in target.items():
        aim, before, after = (spread(tap, name, of) for of in (output, plain[name], ours[name]))
        assert torch.allclose(after.mean, aim.mean, atol=1e-3)
        varying = aim.varies & after.varies
        assert torch.allclose(after.deviation[varying], aim.deviation[varying], rtol=1e-3)
        assert torch.equal(before.mean, aim.mean) is False


@pytest.mark.parametrize("name", ["down_blocks.0.resnets.0.conv1", "time_embedding.linear_1"])
def test_a_gain_and_an_offset_fold_into_weight_and_bias(name, pair):
    _, quantized = pair
    layer = quantized.network.get_submodule(name)
    draw = torch.Generator().manual_seed(1)
    channels = len(layer.weight)
    own = Rescaling(*(torch.randn(2, channels, generator=draw).double()))
    shape = (2, layer.weight.shape[1], 6, 6) if layer.weight.ndim == 4 else (2, layer.weight.shape[1])
    h = torch.randn(shape, generator=draw)
    with torch.no_grad():
        plain = layer(h)
        with rescaled(quantized.network, {name: own}):
            assert torch.allclose(layer(h), own.of(plain, layer.channels), atol=1e-5)
        assert torch.equal(layer(h), plain)


@pytest.mark.parametrize(("shape", "channels"), [((4, 3, 5, 6), 1), ((4, 3), -1), ((4, 5, 3), -1), ((4, 2, 5, 3), -1)])
def test_a_spread_is_of_channels_wherever_they_are_and_a_rescaling_gives_it(shape, channels):
    draw = torch.Generator().manual_seed(0)
    output = torch.randn(shape, generator=draw) * 3 + 1
    own = Spread.of(output, channels)
    for c in range(3):
        channel = output.select(channels, c)
        assert own.mean[c] == pytest.approx(float(channel.mean()), abs=1e-6)
        assert own.deviation[c] == pytest.approx(float(channel.std(correction=0)), rel=1e-6)
    aim = Spread(torch.arange(3).double(), own.deviation * torch.tensor([0.5, 1, 2]).double())
    moved = Spread.of(Rescaling.between(own, aim).of(output, channels), channels)
    assert torch.allclose(moved.mean, aim.mean, atol=1e-5)
    assert torch.allclose(moved.deviation, aim.deviation, rtol=1e-5)


def test_a_range_search_gives_every_quantized_input_a_grid_and_none_leaves_them(pair):
    tap, x = OutputLayerTap(pair[1], pair[0].sites()), states(pair[0], 0)[:16]
    with torch.no_grad():
        plain, _ = ALONE.rescalings(pair[0], tap, x, at(300.0))
        found, _ = Rescaled(LpSearch(2.0, 80), 64, "corrected").rescalings(pair[0], tap, x, at(300.0))
    assert all(own.input_grid is None for own in plain.values())
    assert found.keys() == plain.keys() and all(own.input_grid is not None for own in found.values())


def test_a_layer_that_is_computed_twice_is_refused(pair, monkeypatch):
    model, x = pair[0], states(pair[0], 0)[:16]
    block = model.network.mid_block
    monkeypatch.setattr(block, "forward", calling(model.network.conv_in, x, block.forward))
    with torch.no_grad(), pytest.raises(ValueError, match="computes conv_in several times.*correction=matched"):
        ALONE.rescalings(model, OutputLayerTap(pair[1], model.sites()), x, at(300.0))


def calling(layer, x, forward):
    """The forward of a block that computes another layer too."""
    return lambda *words, **named: (layer(x), forward(*words, **named))[1]


def test_within_an_error_too_layers_come_back(pair):
    name = "conv_in"
    layer = pair[1].network.get_submodule(name)
    own = Rescaling(torch.full((len(layer.weight),), 2.0).double(), torch.zeros(len(layer.weight)).double())
    with pytest.raises(RuntimeError, match="on the way"), rescaled(pair[1].network, {name: own}):
        raise RuntimeError("on the way")
    assert layer.operands[0] is layer.weight


def test_images_that_the_fit_has_not_seen_judge_it(pair):
    """Layers fitted to three of four images, which are far from the fourth here, harm that."""
    model, tap, x = pair[0], OutputLayerTap(pair[1], pair[0].sites()), states(pair[0], 0)[:16]
    apart = 20 * x + 10
    apart[3::4] = x[3::4]
    with torch.no_grad():
        assert ALONE.rescalings(model, tap, x, at(300.0))[0]
        assert ALONE.rescalings(model, tap, apart, at(300.0))[0] == {}


def test_rescalings_that_make_no_difference_are_left_out(pair, monkeypatch):
    model, tap, x = pair[0], OutputLayerTap(pair[1], pair[0].sites()), states(pair[0], 0)[:16]
    with torch.no_grad():
        same = {name: own.nothing() for name, own in ALONE.rescalings(model, tap, x, at(300.0))[0].items()}
        monkeypatch.setattr(rescaled_module, "rescalings_towards", lambda *words: same)
        assert same and ALONE.rescalings(model, tap, x, at(300.0))[0] == {}


def test_too_few_images_to_rescale_on_are_refused():
    with pytest.raises(ValueError, match="expected at least 8 images to rescale layers on, got 7"):
        Rescaled(None, 7, "corrected")


def test_a_channel_that_says_only_its_mean_keeps_its_scale():
    still, moving = (Spread.of(y, 1) for y in (torch.full((4, 1, 2, 2), 3.0), torch.arange(16.0).view(4, 1, 2, 2)))
    for source, target in ((still, moving), (moving, still)):
        found = Rescaling.between(source, target)
        assert found.gain == 1 and found.offset == pytest.approx(float(target.mean - source.mean))


@pytest.mark.parametrize("flicker", [1e-5, 1e-2])
def test_a_channel_that_hardly_varies_is_not_blown_up(flicker):
    hardly = 1 + flicker * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = Rescaling.between(Spread.of(hardly, 1), Spread.of(torch.randn(4, 1, 8, 8), 1))
    assert found.gain == 1


def test_a_channel_that_should_hardly_vary_is_not_made_to_vanish():
    draw = torch.Generator().manual_seed(0)
    loud, quiet = torch.randn(4, 1, 8, 8, generator=draw), 0.1 * torch.randn(4, 1, 8, 8, generator=draw)
    assert Rescaling.between(Spread.of(loud, 1), Spread.of(quiet, 1)).gain == 1
    assert Rescaling.between(Spread.of(loud, 1), Spread.of(5 * quiet, 1)).gain == pytest.approx(0.5, rel=0.2)


def test_within_one_another_the_inner_one_holds_and_then_the_outer(pair):
    layer = pair[1].network.conv_in
    twice, thrice = (
        {"conv_in": Rescaling(torch.full((len(layer.weight),), gain), torch.zeros(len(layer.weight)))}
        for gain in (2, 3)
    )
    with rescaled(pair[1].network, twice):
        with rescaled(pair[1].network, thrice):
            assert torch.equal(layer.operands[0], layer.weight * 3)
        assert torch.equal(layer.operands[0], layer.weight * 2)


def test_a_name_that_does_not_exist_leaves_no_hook(pair):
    network = pair[1].network
    with pytest.raises(AttributeError), watching(network, ["conv_in", "nowhere"], print):
        pass
    assert not network.conv_in._forward_hooks


@pytest.mark.parametrize("wrong", ["conv_nowhere", "conv_norm_out", "conv_out"])
def test_a_network_that_lacks_the_layer_is_refused(wrong, pair):
    with (
        pytest.raises(ValueError, match=rf"expected a quantized layer {wrong} of 7 output channels.*fit it for this"),
        rescaled(pair[1].network, {wrong: Rescaling(torch.ones(7), torch.zeros(7))}),
    ):
        pass
