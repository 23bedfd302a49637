"""A quantized copy computes layer by layer what torch's own operators do, and the float network stays as it was."""

import itertools

import pytest
import torch
from torch import nn

from ptq_diffusion.model import DiffusersDenoiser, Kind, Role, Site
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import (
    CurrentStep,
    FloatWeight,
    InputObservations,
    LayerSettings,
    QuantizedConv2d,
    QuantizedDenoiser,
    QuantizedLayer,
    QuantizedLinear,
    quantize,
)
from ptq_diffusion.network.insertion import layer_settings
from ptq_diffusion.network.layer import quantized_layer
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel, PerTensor
from tests.network.networks import (
    ACTIVATION,
    FLOAT,
    WEIGHT,
    constant,
    named_tensors,
    observed,
    outputs,
    quantized,
    states,
    weighted,
    without_hooks,
)
from tests.steps import at


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder(size=(16, 12))))


@pytest.fixture(scope="module")
def w4a6(denoiser):
    return quantized(denoiser, LayerBits(4, 6))


def test_the_float_network_stays_bit_identical(denoiser):
    before, expected = denoiser.fingerprint(), outputs(denoiser)
    kinds = [type(module) for module in denoiser.network.modules()]
    for bits in (LayerBits(2, 2), FLOAT):
        copied = quantized(denoiser, bits)
        copied.predict(states(denoiser), at(1.0))
        for tensor in itertools.chain(copied.buffers(), copied.parameters()):
            tensor.zero_()
    assert denoiser.fingerprint() == before
    assert torch.equal(outputs(denoiser), expected)
    assert [type(module) for module in denoiser.network.modules()] == kinds
    assert without_hooks(denoiser.network)


def test_float_bits_change_nothing(denoiser):
    assert torch.equal(outputs(quantized(denoiser, FLOAT)), outputs(denoiser))


def test_every_layer_is_replaced_once_and_used(denoiser, w4a6):
    layers = {name: layer for name, layer in w4a6.network.named_modules() if isinstance(layer, QuantizedLayer)}
    assert list(layers) == list(w4a6.layers()) == [site.name for site in weighted(denoiser)]
    assert list(w4a6.inner_layers()) == [name for name in layers if name != "conv_out"]
    assert not any(isinstance(layer, nn.Conv2d | nn.Linear) for layer in w4a6.network.modules())
    used = set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: used.add(name)) for name, layer in layers.items()]
    w4a6.predict(states(denoiser), at(5.0))
    for hook in hooks:
        hook.remove()
    assert used == set(layers)


@pytest.mark.parametrize("weight_bits", [4, 32])
@pytest.mark.parametrize("activation_bits", [6, 32])
@pytest.mark.parametrize("weight", [WEIGHT, ACTIVATION], ids=["per channel", "per tensor"])
def test_every_layer_equals_torchs_operators(denoiser, weight, weight_bits, activation_bits):
    """Inputs and outputs are caught within the whole network."""
    network, caught = quantized(denoiser, LayerBits(weight_bits, activation_bits), weight=weight), {}
    observations = observed(denoiser)
    for name, layer in network.layers().items():
        layer.register_forward_hook(lambda _, inputs, output, name=name: caught.update({name: (inputs[0], output)}))
    network.predict(states(denoiser), at(500.0))
    assert len(caught) == len(weighted(denoiser))
    for name, (x, output) in caught.items():
        original = denoiser.network.get_submodule(name)
        operands = original.weight, original.bias
        if weight_bits != 32:
            quantizer = weight(weight_bits)
            quantizer.observe(original.weight)
            quantizer.freeze()
            operands = faked(original.weight, quantizer), original.bias
        if activation_bits != 32:
            x = faked(x, observations.quantizer(name, activation_bits))
        if isinstance(original, nn.Linear):
            expected = nn.functional.linear(x, *operands)
        else:
            expected = nn.functional.conv2d(x, *operands, original.stride, original.padding)
        assert torch.equal(output, expected), name


def faked(x, quantizer):
    low, high = quantizer.grid.low, quantizer.grid.high
    if quantizer.granularity == PerChannel():
        return torch.fake_quantize_per_channel_affine(x, quantizer.scale, quantizer.zero_point, 0, low, high)
    scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


def test_ranges_come_from_what_the_layers_saw(denoiser):
    """Min-max ranges of the inputs of every layer, over all times."""
    seen = {site.name: [] for site in weighted(denoiser)}
    hooks = [
        denoiser.network.get_submodule(name).register_forward_pre_hook(lambda _, x, own=own: own.append(x[0].aminmax()))
        for name, own in seen.items()
    ]
    observations = observed(denoiser, lambda bits: AffineQuantizer(bits, False, PerTensor(), MinMax(), 64))
    for hook in hooks:
        hook.remove()
    copied = quantize(denoiser, constant(denoiser, LayerBits(32, 8)), observations, WEIGHT)
    for name, own in seen.items():
        assert len(own) == 3
        low, high = min(float(low) for low, _ in own), max(float(high) for _, high in own)
        layer = copied.layer(name)
        assert layer.settings.scale.item() == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-6)
        assert isinstance(layer.weights[0], FloatWeight)


def test_more_bits_are_closer_to_float(denoiser):
    expected, observations = outputs(denoiser), observed(denoiser)

    def error(*bits):
        copied = quantize(denoiser, constant(denoiser, LayerBits(*bits)), observations, WEIGHT)
        return (outputs(copied) - expected).square().mean().item()

    errors = [error(bits, bits) for bits in (8, 6, 4, 2)]
    assert 0 < errors[0] < errors[1] < errors[2] < errors[3]
    for bits in (2, 4):
        assert error(bits, 32) < error(bits, 2)


def test_one_layer_can_be_left_in_float(denoiser):
    first = denoiser.sites()[0].name
    copied = quantized(denoiser, LayerBits(4, 4), **{first: FLOAT})
    x, original = states(denoiser), denoiser.network.get_submodule(first)
    assert torch.equal(copied.layer(first)(x), original(x))
    assert torch.equal(copied.layer(first).operands(0)[0], original.weight)
    assert not torch.equal(copied.output_layer.operands(0)[0], denoiser.network.conv_out.weight)


def test_a_quantized_model_belongs_to_the_same_family(denoiser, w4a6):
    assert w4a6.shape == denoiser.shape and w4a6.scheduler_config == denoiser.scheduler_config
    assert w4a6.sites() == tuple(denoiser.sites()) and w4a6.attention_macs() == denoiser.attention_macs()
    assert type(w4a6.denoiser) is type(denoiser)
    assert not any(parameter.requires_grad for parameter in w4a6.parameters()) and not w4a6.network.training
    x = states(denoiser)
    assert torch.equal(w4a6.predict(x, at(9.0)).m[1:2], w4a6.predict(x[1:2].repeat(3, 1, 1, 1), at(9.0)).m[:1])


def test_features_are_the_input_of_the_output_layer_on_its_grid(denoiser, w4a6):
    seen, last = [], w4a6.output_layer
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    m, features, _ = w4a6.predict(states(denoiser), at(300.0))
    hook.remove()
    assert torch.equal(features, last.settings(seen[0], 0)) and not torch.equal(features, seen[0])
    assert torch.equal(m, last.compute(features, *last.operands(0)))
    assert features.shape[1] == last.operands(0)[0].shape[1]
    assert without_hooks(w4a6)


def test_a_network_of_another_plan_is_refused(denoiser):
    plan = constant(denoiser, LayerBits(4, 6))
    others = BitwidthPlan(
        {name: bits for name, bits in plan.weight.items() if name != "conv_in"},
        {name: bits for name, bits in plan.activation.items() if name != "conv_in"},
    )
    with pytest.raises(ValueError, match="which lacks conv_in"):
        quantize(denoiser, others, observed(denoiser), WEIGHT)


def bare(layer):
    """The quantized form of a layer whose operands are all left in float."""
    observations = InputObservations([Site("0", Kind.CONV2D, Role.INNER, 1, tuple(layer.weight.shape))], ACTIVATION)
    settings = layer_settings(BitwidthPlan.constant({"0": FLOAT}), "0", observations)
    bias = None if layer.bias is None else layer.bias.detach()
    return quantized_layer(layer, [FloatWeight(layer.weight.detach())], bias, settings, CurrentStep())


@pytest.mark.parametrize("layer", [nn.Conv1d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)])
def test_other_layers_are_refused(layer):
    with pytest.raises(TypeError, match=f"expected a Conv2d or Linear layer, got {type(layer).__name__}"):
        bare(layer)


def test_padding_that_is_not_zeros_is_refused():
    with pytest.raises(ValueError, match="got padding_mode='circular'"):
        bare(nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (2, 4, 6, 10)),
        (nn.Conv2d(6, 4, 3, dilation=2, padding=(2, 0)), (2, 6, 7, 9)),
        (nn.Linear(3, 5, bias=False), (2, 7, 3)),
    ],
)
def test_layers_with_stride_dilation_groups_and_no_bias(layer, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    copied = bare(layer)
    assert isinstance(copied, QuantizedLinear if isinstance(layer, nn.Linear) else QuantizedConv2d)
    assert torch.equal(copied(x), layer(x))


def test_two_output_layers_are_refused(denoiser):
    sites = [Site(name, Kind.CONV2D, Role.LAST, 1, (1, 1, 1, 1)) for name in ("a", "b")]
    plan = BitwidthPlan.constant({"a": FLOAT, "b": FLOAT})
    with pytest.raises(ValueError, match=r"one output layer, got the output layers \['a', 'b'\]"):
        QuantizedDenoiser(denoiser, sites, 0, plan, CurrentStep())


def test_every_tensor_is_in_the_state_that_moves_with_the_network(w4a6):
    """Buffers and parameters: packed weights, biases, settings, and all that is not quantized."""
    names = set(named_tensors(w4a6.network))
    assert names == set(w4a6.network.state_dict())
    for name, layer in w4a6.layers().items():
        assert {f"{name}.weights.0.packed", f"{name}.weights.0.scale", f"{name}.settings.bits"} <= names
        assert isinstance(layer.settings, LayerSettings)
