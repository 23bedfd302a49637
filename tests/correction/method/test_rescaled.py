"""Layers are given the means and deviations of the float network's, where that brings the output nearer."""

import copy
from functools import partial

import pytest
import torch

from ptq_diffusion.correction import Rescaled
from ptq_diffusion.correction.layer_rules import LayerRules, rescalings_towards
from ptq_diffusion.correction.method import rescaled as rescaled_module
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.model import DiffusersDenoiser, Role
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import (
    DeviationRatio,
    InputObservations,
    LeastSquares,
    QuantizedDenoiser,
    Rescaling,
    Spread,
    quantize,
    watching,
)
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, MinMax, PerTensor
from tests.correction.pipelines import states
from tests.steps import at

ALONE = Rescaled(None, 64, "corrected")


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


def float_copy(model):
    """A copy of the quantized kind whose operands are all float."""
    unused = partial(AffineQuantizer, symmetric=True, granularity=PerTensor(), range_search=MinMax(), bins=4)
    plan = BitwidthPlan.constant({site.name: LayerBits(32, 32) for site in model.sites()})
    return quantize(model, plan, InputObservations(model.sites(), unused), unused)


@pytest.fixture(scope="module")
def unquantized(model):
    return float_copy(model)


@pytest.fixture
def distorted(model):
    """A copy with another scale and bias of every layer's channels but the output layer's."""
    network = copy.deepcopy(model.network)
    draw = torch.Generator().manual_seed(0)
    for site in model.sites():
        if site.weighted and site.role is not Role.LAST:
            layer = network.get_submodule(site.name)
            gain = 1 + 0.3 * torch.rand(len(layer.weight), generator=draw)
            layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.mul_(gain).add_(0.2 * torch.randn(len(gain), generator=draw))
    return float_copy(model.with_network(network))


def spread(quantized, name, output):
    return Spread.of(output, quantized.layer(name).channels)


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
    with torch.no_grad():
        found, _ = ALONE.rescalings(model, distorted, PathState(x, at(300.0), None))
        assert found.keys() == distorted.layers().keys() - {"conv_out"}
        m, q = model.predict(unseen, at(300.0)).m, distorted.predict(unseen, at(300.0)).m
        repaired = distorted.at(0, found).predict(unseen, at(300.0)).m
    assert torch.allclose(repaired, m, atol=1e-5)
    assert (q - m).abs().max() > 0.1


@pytest.mark.parametrize("rule", [DeviationRatio(), LeastSquares()], ids=lambda rule: type(rule).__name__)
def test_a_network_without_noise_has_nothing_to_rescale(rule, model, unquantized):
    x = states(model, 0)[:16]
    said = outputs(model.network, lambda: model.predict(x, at(300.0)), unquantized.inner_layers())
    with torch.no_grad():
        targets = {name: rule.target(output, unquantized.layer(name).channels) for name, output in said.items()}
        found, _ = rescalings_towards(targets, unquantized, PathState(x, at(300.0), None), LayerRules(None))
    assert found.keys() == said.keys()
    for own in found.values():
        assert torch.allclose(own.gain, torch.ones_like(own.gain), atol=1e-5)
        assert torch.allclose(own.offset, torch.zeros_like(own.offset), atol=1e-5)


def test_three_of_four_images_are_fitted_and_the_fourth_judges(pair, monkeypatch):
    model, quantized = pair
    x, asked, predict = states(model, 0)[:16], [], QuantizedDenoiser.predict

    def recorded(network, x_t, step, condition=None):
        asked.append((x_t, network is not quantized))
        return predict(network, x_t, step, condition)

    monkeypatch.setattr(QuantizedDenoiser, "predict", recorded)
    with torch.no_grad():
        found, m = ALONE.rescalings(model, quantized, PathState(x, at(300.0), None))
        assert found and torch.equal(m, model.predict(x, at(300.0)).m)
    expected = [(x[3::4], False), (three_of_four(x), False), (x[3::4], True)]
    for (given, used), (wanted, rescales) in zip(asked, expected, strict=True):
        assert torch.equal(given, wanted) and used is rescales


def test_rescaled_layers_have_the_means_and_deviations_of_the_float_ones(pair):
    model, quantized = pair
    x = states(model, 0)[:16]
    with torch.no_grad():
        found, _ = ALONE.rescalings(model, quantized, PathState(x, at(300.0), None))
    assert found
    x = three_of_four(x)
    target = outputs(model.network, lambda: model.predict(x, at(300.0)), found)
    plain, ours = (
        outputs(network.network, lambda network=network: network.predict(x, at(300.0)), found)
        for network in (quantized, quantized.at(0, found))
    )
    for name, output in target.items():
        aim, before, after = (spread(quantized, name, of) for of in (output, plain[name], ours[name]))
        assert torch.allclose(after.mean, aim.mean, atol=1e-3)
        varying = aim.varies & after.varies
        assert torch.allclose(after.deviation[varying], aim.deviation[varying], rtol=1e-3)
        assert torch.equal(before.mean, aim.mean) is False


@pytest.mark.parametrize("name", ["down_blocks.0.resnets.0.conv1", "time_embedding.linear_1"])
def test_a_gain_and_an_offset_fold_into_weight_and_bias(name, pair):
    _, quantized = pair
    layer = quantized.layer(name)
    draw = torch.Generator().manual_seed(1)
    weight, _ = layer.operands(0)
    own = Rescaling(*torch.randn(2, len(weight), generator=draw))
    shape = (2, weight.shape[1], 6, 6) if weight.ndim == 4 else (2, weight.shape[1])
    h = torch.randn(shape, generator=draw)
    with torch.no_grad():
        plain = layer(h)
        folded = quantized.at(0, {name: own}).layer(name)
        assert torch.allclose(folded(h), own.of(plain, layer.channels), atol=1e-5)
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
    x = states(pair[0], 0)[:16]
    with torch.no_grad():
        plain, _ = ALONE.rescalings(*pair, PathState(x, at(300.0), None))
        found, _ = Rescaled(LpSearch(2.0, 80), 64, "corrected").rescalings(*pair, PathState(x, at(300.0), None))
    assert all(own.input_grid is None for own in plain.values())
    assert found.keys() == plain.keys() and all(own.input_grid is not None for own in found.values())


def test_a_layer_that_is_computed_twice_is_refused(pair, monkeypatch):
    model, x = pair[0], states(pair[0], 0)[:16]
    block = model.network.mid_block
    monkeypatch.setattr(block, "forward", calling(model.network.conv_in, 2 * x, block.forward))
    with torch.no_grad(), pytest.raises(ValueError, match="computes conv_in several times.*correction=matched"):
        ALONE.rescalings(*pair, PathState(x, at(300.0), None))


def calling(layer, x, forward):
    """The forward of a block that computes another layer too."""
    return lambda *words, **named: (layer(x), forward(*words, **named))[1]


def test_images_that_the_fit_has_not_seen_judge_it(pair):
    """Layers fitted to three of four images, which are far from the fourth here, harm that."""
    x = states(pair[0], 0)[:16]
    apart = 20 * x + 10
    apart[3::4] = x[3::4]
    with torch.no_grad():
        assert ALONE.rescalings(*pair, PathState(x, at(300.0), None))[0]
        assert ALONE.rescalings(*pair, PathState(apart, at(300.0), None))[0] == {}


def test_rescalings_that_make_no_difference_are_left_out(pair, monkeypatch):
    x = states(pair[0], 0)[:16]
    with torch.no_grad():
        same = {
            name: own.identity_like() for name, own in ALONE.rescalings(*pair, PathState(x, at(300.0), None))[0].items()
        }
        monkeypatch.setattr(rescaled_module, "rescalings_towards", lambda *words: (same, {}))
        assert same and ALONE.rescalings(*pair, PathState(x, at(300.0), None))[0] == {}


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


def test_rescalings_of_another_network_replace_those_it_has(pair):
    """And leave it as it is: gains do not pile up."""
    weight, _ = pair[1].layer("conv_in").operands(0)
    twice, thrice = (
        {"conv_in": Rescaling(torch.full((len(weight),), gain), torch.zeros(len(weight)))} for gain in (2.0, 3.0)
    )
    network = pair[1].at(0, twice)
    assert torch.allclose(network.at(0, thrice).layer("conv_in").operands(0)[0], weight * 3)
    assert torch.allclose(network.layer("conv_in").operands(0)[0], weight * 2)
    assert torch.equal(pair[1].layer("conv_in").operands(0)[0], weight)


def test_a_name_that_does_not_exist_leaves_no_hook(pair):
    network = pair[1].network
    with pytest.raises(AttributeError), watching(network, ["conv_in", "nowhere"], print):
        pass
    assert not network.conv_in._forward_hooks


@pytest.mark.parametrize("wrong", ["conv_nowhere", "conv_norm_out", "conv_out"])
def test_a_network_that_lacks_the_layer_is_refused(wrong, pair):
    with pytest.raises(ValueError, match=rf"expected a quantized layer {wrong} of 7 output channels.*fit it for this"):
        pair[1].at(0, {wrong: Rescaling(torch.ones(7), torch.zeros(7))})
