"""Weights with a part of low rank in 16 bits: the nearer to float the higher the rank, stored, counted, or refused."""

import pytest
import torch
from torch import nn

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import DiffusersDenoiser, Kind, Role, Site
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import FloatWeight, Integer, QuantizedWeight, load_quantized, quantize, save_quantized
from ptq_diffusion.network.insertion import weight_quantizer
from ptq_diffusion.network.low_rank import LowRankWeight, quantizer_of_layer
from ptq_diffusion.network.onnx.step_values import layer_values
from ptq_diffusion.network.saving import ranks_of_layers
from ptq_diffusion.quantizer.low_rank import with_low_rank
from tests.network.networks import WEIGHT, assert_same, by_step, observed, outputs, weighted

SHAPES = [(12, 20), (12, 5, 3, 3)]
FACTORS = [None, torch.tensor([0.25, 1.0, 8.0, 0.5, 2.0])]


@pytest.fixture(scope="module")
def maker(composed):
    """From a bitwidth to a quantizer, as a configuration gives it."""
    return construct(composed("+quantizer@quantizer=symmetric_per_channel", "quantizer.bins=64").quantizer)


def spiked(shape):
    """A weight whose largest parts are of rank 2."""
    draw = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(shape[0], 2, generator=draw), torch.randn(2, *shape[1:], generator=draw)
    return 5 * torch.tensordot(rows, columns, 1) + 0.3 * torch.randn(shape, generator=draw)


def stored(weight, maker, rank, factors, bits=4):
    equalisation = None if factors is None else factors.repeat(weight.shape[1] // 5)
    quantizer = weight_quantizer(weight, bits, with_low_rank(maker, rank) if rank else maker, equalisation)
    if rank:
        part = LowRankWeight.of(weight, quantizer)
        assert torch.allclose(quantizer(weight), part.values(), rtol=0, atol=1e-6)
        return part
    return QuantizedWeight.of(weight, quantizer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factors", FACTORS)
def test_the_error_falls_with_the_rank_to_that_of_16_bits(maker, shape, factors):
    weight = spiked(shape)
    errors = [float((stored(weight, maker, rank, factors).values() - weight).norm()) for rank in (0, 1, 2, 12)]
    assert errors == sorted(errors, reverse=True) and errors[2] < errors[0] / 5
    assert errors[-1] < 2**-10 * float(weight.norm())


@pytest.mark.parametrize("factors", FACTORS)
def test_a_gain_is_of_the_whole_weight(maker, factors):
    weight = spiked((12, 5, 3, 3))
    part, gain = stored(weight, maker, 2, factors), torch.linspace(0.5, 2, 12)
    assert torch.equal(part.values(gain), part.values() * gain.view(12, 1, 1, 1))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_weight_without_gains_keeps_one_copy_in_float(maker, rank):
    part = stored(spiked((12, 20)), maker, rank, None)
    part.values()
    assert kept(part) == 12 * 20
    part.forget()
    assert kept(part) == 0


def kept(part):
    """How many numbers a stored weight holds beside its buffers."""
    return sum(
        held.numel() for module in part.modules() for held in vars(module).values() if isinstance(held, torch.Tensor)
    )


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def network(denoiser, maker):
    plan = by_step(denoiser, [LayerBits(4, 8), LayerBits(32, 32)])
    return quantize(denoiser, plan, observed(denoiser), maker, rank=2)


def test_a_network_comes_back_bit_for_bit(denoiser, network, tmp_path):
    """Its first and its last layer have no such part, nor has a copy that is float."""
    inner = {site.name for site in weighted(denoiser) if site.role is Role.INNER}
    kinds = {name: [type(weight) for weight in layer.weights] for name, layer in network.layers().items()}
    assert {name for name, copies in kinds.items() if copies == [LowRankWeight, FloatWeight]} == inner
    save_quantized(network, tmp_path)
    assert ranks_of_layers(tmp_path) == dict.fromkeys(inner, 2)
    assert_same(network, load_quantized(tmp_path), 2)


def test_it_is_nearer_to_float_than_without(denoiser, network, maker):
    without = quantize(denoiser, network.plan, observed(denoiser), maker)
    expected = outputs(denoiser)
    assert (outputs(network) - expected).norm() < (outputs(without) - expected).norm()


def test_integers_and_graphs_refuse_it_by_name(denoiser, network):
    name = "time_embedding.linear_1"
    with pytest.raises(ValueError, match="cannot: .*, for a part of its weight is in 16 bits"):
        network.to_backend(Integer())
    with pytest.raises(TypeError, match=f"at {name}, .* got LowRankWeight"):
        layer_values(name, network.layer(name), 0)


def test_integers_that_were_chosen_without_it_are_refused(denoiser, network, maker):
    integers = {("conv_in", 4): torch.zeros(1, dtype=torch.int32)}
    with pytest.raises(ValueError, match="got some beside parts of rank 2, .*; leave out the integers or the rank"):
        quantize(denoiser, network.plan, observed(denoiser), maker, integers, rank=2)


def test_layers_that_have_no_such_part_are_refused_by_name(maker):
    grouped, layer = nn.Conv2d(4, 4, 3, groups=2), nn.Linear(3, 8)
    with pytest.raises(ValueError, match="without groups of channels, .* got a.b; set quantizer.low_rank.rank=0"):
        quantizer_of_layer(maker, 1, Site("a.b", Kind.CONV2D, Role.INNER, 1, (4, 2, 3, 3)), grouped)
    with pytest.raises(ValueError, match="c: expected a rank of at most 3, .* 8 x 3, got 4; lower quantizer.low_rank"):
        quantizer_of_layer(maker, 4, Site("c", Kind.LINEAR, Role.INNER, 1, (8, 3)), layer)
    with pytest.raises(ValueError, match="expected an AffineQuantizer of weights beside a part of low rank"):
        with_low_rank(WEIGHT, 1)
    for rank, role in ((0, Role.INNER), (4, Role.FIRST)):
        assert quantizer_of_layer(maker, rank, Site("c", Kind.LINEAR, role, 1, (8, 3)), layer) is maker
