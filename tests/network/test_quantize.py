"""A quantized copy computes layer by layer what torch's own operators do, and the float network stays as it was."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from ptq_diffusion.network.quantizers import network_fingerprint
from torch import nn

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import Role
from ptq_diffusion.network import (
    NetworkQuantizers,
    OutputLayerTap,
    QuantizedLayer,
    QuantizedLinear,
    observing,
    quantize,
)
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, MinMax
from tests.steps import at

TIMES = (20.0, 500.0, 900.0)


def weight_quantizer(bits):
    return AffineQuantizer(bits, symmetric=True, per_channel=True, range_search=LpSearch(2, 16), bins=1024)


def tensor_quantizer(bits):
    return AffineQuantizer(bits, symmetric=False, per_channel=False, range_search=LpSearch(2, 16), bins=1024)


def states(denoiser):
    return torch.randn(3, *denoiser.shape, generator=torch.Generator().manual_seed(0))


def fresh(denoiser, bits, weight=weight_quantizer, **exceptions):
    sites = denoiser.sites()
    layers = {site.name: exceptions.get(site.name, bits) for site in sites}
    return NetworkQuantizers(sites, BitwidthPlan.constant(layers), weight, tensor_quantizer)


def observe(denoiser, quantizers):
    quantizers.observe_weights(denoiser.network)
    with observing(denoiser.network, quantizers):
        for t in TIMES:
            denoiser.predict(states(denoiser), at(t))


def calibrated(denoiser, bits, **options):
    quantizers = fresh(denoiser, bits, **options)
    observe(denoiser, quantizers)
    quantizers.freeze()
    return quantizers


def quantized(denoiser, bits, **options):
    return denoiser.with_network(quantize(denoiser.network, calibrated(denoiser, bits, **options)))


def outputs(denoiser):
    return torch.stack([denoiser.predict(states(denoiser), at(t)).m for t in TIMES])


def without_hooks(network):
    return not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder(size=(16, 12))))


@pytest.fixture(scope="module")
def w4a6(denoiser):
    return calibrated(denoiser, LayerBits(4, 6))


def test_the_float_network_stays_bit_identical(denoiser):
    before, expected = network_fingerprint(denoiser.network), outputs(denoiser)
    kinds = [type(module) for module in denoiser.network.modules()]
    copied = quantized(denoiser, LayerBits(2, 2))
    copied.predict(states(denoiser), at(1.0))
    for buffer in itertools.chain(copied.network.buffers(), copied.network.parameters()):
        buffer.zero_()
    assert network_fingerprint(denoiser.network) == before
    assert torch.equal(outputs(denoiser), expected)
    assert [type(module) for module in denoiser.network.modules()] == kinds


def test_float_bits_change_nothing(denoiser):
    assert torch.equal(outputs(quantized(denoiser, LayerBits(32, 32))), outputs(denoiser))


def test_every_layer_is_replaced_once_and_used(denoiser, w4a6):
    network = quantize(denoiser.network, w4a6)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, QuantizedLayer)}
    assert list(layers) == [site.name for site in denoiser.sites()]
    assert not any(isinstance(layer, nn.Conv2d | nn.Linear) for layer in network.modules())
    used = set()
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: used.add(name))
    denoiser.with_network(network).predict(states(denoiser), at(5.0))
    assert used == set(layers)


@pytest.mark.parametrize("weight_bits", [4, 32])
@pytest.mark.parametrize("activation_bits", [6, 32])
@pytest.mark.parametrize("weight", [weight_quantizer, tensor_quantizer])
def test_every_layer_equals_torchs_operators(denoiser, weight, weight_bits, activation_bits):
    """Inputs and outputs are caught within the whole network."""
    quantizers = calibrated(denoiser, LayerBits(weight_bits, activation_bits), weight=weight)
    network = quantize(denoiser.network, quantizers)
    caught = {}
    for name in quantizers.layers:
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: caught.update({name: (inputs[0], output)})
        )
    denoiser.with_network(network).predict(states(denoiser), at(500.0))
    assert len(caught) == len(quantizers.layers)
    for name, (x, output) in caught.items():
        original, own = denoiser.network.get_submodule(name), quantizers.layers[name]
        operands = faked(original.weight, own.weight), original.bias
        x = faked(x, own.activation)
        if isinstance(original, nn.Linear):
            expected = nn.functional.linear(x, *operands)
        else:
            expected = nn.functional.conv2d(x, *operands, original.stride, original.padding)
        assert torch.equal(output, expected), name


def faked(x, quantizer):
    if quantizer is None:
        return x
    low, high = quantizer.grid.low, quantizer.grid.high
    if quantizer.per_channel:
        return torch.fake_quantize_per_channel_affine(x, quantizer.scale, quantizer.zero_point, 0, low, high)
    scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


def test_ranges_come_from_what_the_layers_saw(denoiser):
    """Min-max ranges of the inputs of every layer, over all times."""

    def min_max(bits):
        return AffineQuantizer(bits, symmetric=False, per_channel=False, range_search=MinMax(), bins=64)

    sites = denoiser.sites()
    plan = BitwidthPlan.constant({site.name: LayerBits(32, 8) for site in sites})
    quantizers = NetworkQuantizers(sites, plan, min_max, min_max)
    seen = {site.name: [] for site in sites}
    hooks = [
        denoiser.network.get_submodule(name).register_forward_pre_hook(lambda _, x, own=own: own.append(x[0].aminmax()))
        for name, own in seen.items()
    ]
    observe(denoiser, quantizers)
    for hook in hooks:
        hook.remove()
    quantizers.freeze()
    for name, own in seen.items():
        assert len(own) == len(TIMES)
        low, high = min(float(low) for low, _ in own), max(float(high) for _, high in own)
        quantizer = quantizers.layers[name].activation
        assert quantizer.scale.item() == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-6)
        assert quantizers.layers[name].weight is None


def test_more_bits_are_closer_to_float(denoiser):
    expected = outputs(denoiser)
    errors = [
        (outputs(quantized(denoiser, LayerBits(*bits))) - expected).square().mean().item()
        for bits in [(8, 8), (6, 6), (4, 4), (2, 2)]
    ]
    assert 0 < errors[0] < errors[1] < errors[2] < errors[3]
    for bits in (2, 4):
        weight_only, both = (
            (outputs(quantized(denoiser, LayerBits(bits, activation))) - expected).square().mean()
            for activation in (32, 2)
        )
        assert weight_only < both


def test_one_layer_can_be_left_in_float(denoiser):
    first = denoiser.sites()[0].name
    network = quantize(denoiser.network, calibrated(denoiser, LayerBits(4, 4), **{first: LayerBits(32, 32)}))
    x = states(denoiser)
    assert torch.equal(network.get_submodule(first)(x), denoiser.network.get_submodule(first)(x))
    assert torch.equal(network.get_submodule(first).weight, denoiser.network.get_submodule(first).weight)
    assert not torch.equal(network.conv_out.weight, denoiser.network.conv_out.weight)


def test_a_quantized_model_belongs_to_the_same_family(denoiser, w4a6):
    model = denoiser.with_network(quantize(denoiser.network, w4a6))
    assert model.shape == denoiser.shape and model.scheduler_config == denoiser.scheduler_config
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x = states(denoiser)
    assert torch.equal(model.predict(x, at(9.0)).m[1:2], model.predict(x[1:2].repeat(3, 1, 1, 1), at(9.0)).m[:1])


# Observation.


def test_observing_changes_no_output_and_leaves_no_hook(denoiser):
    quantizers = fresh(denoiser, LayerBits(8, 8))
    expected = outputs(denoiser)
    with observing(denoiser.network, quantizers):
        assert torch.equal(outputs(denoiser), expected)
        assert not without_hooks(denoiser.network)
    assert without_hooks(denoiser.network)


def test_a_tap_sees_the_input_of_the_output_layer_and_leaves_no_hook(denoiser):
    asked = quantized(denoiser, LayerBits(4, 6))
    tap = OutputLayerTap(asked, denoiser.sites())
    q, features = tap.predict(states(denoiser), at(300.0))
    last = asked.network.get_submodule(next(s.name for s in denoiser.sites() if s.role is Role.LAST))
    assert torch.equal(q, asked.predict(states(denoiser), at(300.0)).m)
    assert torch.equal(features, last.activation(features)) and features.shape[1] == last.weight.shape[1]
    assert without_hooks(asked.network) and without_hooks(last.activation)


def test_hooks_are_gone_after_an_exception(denoiser):
    quantizers = fresh(denoiser, LayerBits(8, 8))
    nowhere = SimpleNamespace(layers=quantizers.layers | {"nowhere": next(iter(quantizers.layers.values()))})
    with pytest.raises(AttributeError), observing(denoiser.network, nowhere):
        pass
    assert without_hooks(denoiser.network)
    with pytest.raises(KeyboardInterrupt), observing(denoiser.network, quantizers):
        raise KeyboardInterrupt
    assert without_hooks(denoiser.network)
    observe(denoiser, quantizers)
    quantizers.freeze()
    with pytest.raises(RuntimeError, match="observing"), observing(denoiser.network, quantizers):
        denoiser.predict(states(denoiser), at(1.0))
    assert without_hooks(denoiser.network)


def test_a_layer_that_saw_nothing_is_named(denoiser):
    quantizers = fresh(denoiser, LayerBits(8, 8))
    quantizers.observe_weights(denoiser.network)
    with pytest.raises(RuntimeError, match="conv_in/activation: nothing was observed"):
        quantizers.freeze()


@pytest.mark.parametrize("layer", [nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)])
def test_other_layers_are_refused(layer):
    quantizers = NetworkQuantizers([], BitwidthPlan.constant({}), weight_quantizer, tensor_quantizer)
    quantizers.layers = {"0": None}
    with pytest.raises(TypeError, match=f"expected a Conv2d or Linear layer, got {type(layer).__name__}"):
        quantize(nn.Sequential(layer), quantizers)


def test_an_activation_has_one_grid(denoiser):
    sites = denoiser.sites()
    plan = BitwidthPlan.constant({site.name: LayerBits(8, 8) for site in sites})
    with pytest.raises(ValueError, match="expected a per-tensor activation quantizer"):
        NetworkQuantizers(sites, plan, weight_quantizer, weight_quantizer)


def test_padding_that_is_not_zeros_is_refused(denoiser):
    own = calibrated(denoiser, LayerBits(8, 8)).layers["conv_in"]
    from ptq_diffusion.network import QuantizedConv2d

    with pytest.raises(ValueError, match="got padding_mode='circular'"):
        QuantizedConv2d(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"), own)


def test_layers_with_stride_dilation_groups_and_no_bias():
    layers = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(6, 4, 3, dilation=2, padding=(2, 0)),
        nn.Flatten(2),
        nn.Linear(3, 5, bias=False),
    )
    from ptq_diffusion.model import Kind, Role, Site

    sites = [
        Site(name, kind, Role.INNER, 1, tuple(layers[int(name)].weight.shape))
        for name, kind in (("0", Kind.CONV2D), ("1", Kind.CONV2D), ("3", Kind.LINEAR))
    ]
    plan = BitwidthPlan.constant({site.name: LayerBits(32, 32) for site in sites})
    copied = quantize(layers, NetworkQuantizers(sites, plan, weight_quantizer, tensor_quantizer))
    x = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    assert isinstance(copied[3], QuantizedLinear)
    assert torch.equal(copied(x), layers(x))
