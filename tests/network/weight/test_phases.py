"""Weights on several grids that steps take in turn: nearer on average, stored in finer integers, computed as 8 bits."""

from functools import partial

import pytest
import torch

from ptq_diffusion.bitwidth.cost import CostOutsidePlan, plan_cost
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import QuantizedWeight, load_quantized, quantize, save_quantized
from ptq_diffusion.network.insertion import weight_quantizer
from ptq_diffusion.network.integers import stored_weight
from ptq_diffusion.network.low_rank import LowRankWeight
from ptq_diffusion.network.onnx.step_values import layer_values
from ptq_diffusion.network.saving import phases_of_weights
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel, PerGroup, PerTensor
from ptq_diffusion.quantizer.low_rank import with_low_rank
from tests.network.networks import assert_same, by_step, observed
from tests.steps import at

KINDS = [(symmetric, of) for symmetric in (True, False) for of in (PerTensor(), PerChannel(), PerGroup(2))]
FACTORS = torch.tensor([0.8, 1.0, 1.25, 1.1]).view(1, 4, 1, 1)


BY_CHANNEL = PerChannel()


def maker(phases, symmetric=True, granularity=BY_CHANNEL):
    options = {"symmetric": symmetric, "granularity": granularity, "range_search": MinMax(), "bins": 64}
    return partial(AffineQuantizer, **options, phases=phases)


def stored(weight, bits, phases, kind, factors=None):
    """The weight on grids whose ends it does not reach."""
    return QuantizedWeight.of(weight, weight_quantizer(1.3 * weight, bits, maker(phases, *kind), factors))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("factors", [None, FACTORS[0]], ids=["plain", "equalised"])
def test_phases_are_alike_apart_and_nearer_together(kind, factors):
    """Each has about the error of one grid, and their mean, which is stored, the less the more there are."""
    weight = torch.randn(24, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    alone = stored(weight, 3, 1, kind, factors)
    assert alone.at(0) is alone and alone.at(7) is alone
    errors = [(alone.values() - weight).square().mean()]
    for phases in (2, 4, 8):
        whole = stored(weight, 3, phases, kind, factors)
        values = torch.stack([whole.at(i).values() for i in range(phases)])
        assert all(torch.equal(whole.at(i + phases).values(), values[i]) for i in range(phases))
        each = (values - weight).square().flatten(1).mean(1)
        assert (each < 1.6 * errors[0]).all() and (each > 0.6 * errors[0]).all()
        errors.append((values.mean(0) - weight).square().mean())
        gain = torch.linspace(0.5, 2, 24)
        assert torch.allclose(whole.at(1).values(gain), values[1] * gain.view(-1, 1, 1, 1), rtol=1e-6, atol=0)
    assert all(after < before / 2 for before, after in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_stored_weight_says_its_phases(kind):
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    whole = stored(weight, 4, 2, kind)
    again = stored_weight(whole.tensors(), 4, kind[0], (6, 4, 3, 3))
    assert all(torch.equal(again.at(i).values(), whole.at(i).values()) for i in range(3))
    odd = dict(whole.tensors()) | {"phases": torch.tensor([8], dtype=torch.int32)}
    with pytest.raises(ValueError, match="at most 4 phases of integers of 4 bits, got 8"):
        stored_weight(odd, 4, kind[0], (6, 4, 3, 3))


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def networks(denoiser):
    """By the number of phases, W4A8 and in the output layer W8A8."""
    plan = by_step(denoiser, [LayerBits(4, 8)], conv_out=LayerBits(8, 8))
    return {phases: quantize(denoiser, plan, observed(denoiser), maker(phases)) for phases in (1, 2, 4)}


def predictions(network, steps=4):
    x = torch.randn(3, *network.shape, generator=torch.Generator().manual_seed(1))
    return torch.stack([network.predict(x, at(500.0, i)).m for i in range(steps)])


def test_outputs_of_neighbouring_steps_cancel_errors(denoiser, networks):
    """At the same time and state, so that steps differ in their phase alone."""
    expected = predictions(denoiser)
    changes = {phases: predictions(network) - expected for phases, network in networks.items()}
    assert torch.equal(changes[1][0], changes[1][1])
    assert torch.equal(changes[2][:2], changes[2][2:]) and not torch.equal(changes[2][0], changes[2][1])
    norms = [changes[phases].mean(0).norm() for phases in (1, 2, 4)]
    assert norms[2] < norms[1] < 0.8 * norms[0]


@pytest.mark.parametrize("phases", [1, 2, 4])
def test_a_network_comes_back_bit_for_bit_in_so_many_bytes(denoiser, networks, tmp_path, phases):
    network, architecture = networks[phases], denoiser.architecture()
    save_quantized(network, tmp_path)
    assert_same(network, load_quantized(tmp_path), 4)
    assert phases_of_weights(tmp_path) == phases
    stored_bits = 8 * sum(weight.packed.numel() for layer in network.layers().values() for weight in layer.weights)
    costs = [plan_cost(architecture, network.plan, 1, CostOutsidePlan(phases=count)) for count in (1, phases)]
    weights = sum(torch.Size(site.weight_shape).numel() for site in denoiser.sites() if site.weighted)
    others = 32 * (architecture.parameters - weights)
    assert stored_bits == pytest.approx(costs[1].stored_bits - others, rel=1e-3)
    sums = [site.macs // site.weight_shape[0] * 8 for site in denoiser.sites() if site.weighted]
    last = next(site for site in denoiser.sites() if site.name == "conv_out")
    added = sum(sums) - last.macs // last.weight_shape[0] * 8 if phases > 1 else 0
    assert costs[1].bops - costs[0].bops == added


@pytest.mark.parametrize("phases", [2, 4])
def test_integers_of_8_bits_equal_their_simulation(networks, phases):
    """On the same input of every layer, as rounding on the way makes later inputs others."""
    simulated = networks[phases]
    integer, inputs = simulated.to_backend("integer"), {}
    for name, layer in integer.layers().items():
        layer.register_forward_hook(lambda _, given, output, name=name: inputs.update({name: (given[0], output)}))
    for i in range(3):
        integer.predict(torch.randn(2, *integer.shape), at(500.0, i))
        for name, (given, output) in inputs.items():
            layer = simulated.layer(name)
            layer.current.i = i
            expected = layer(given)
            assert (output - expected).norm() < 1e-5 * expected.norm(), name


def test_graphs_have_the_integers_of_each_step(networks):
    network, steps = networks[2], []
    for name, layer in network.layers().items():
        for i in range(2):
            values = layer_values(name, layer, i)
            weight = values[f"{name}.weight"]
            scale = values[f"{name}.weight_scale"].view(-1, *[1] * (weight.ndim - 1))
            assert torch.equal(weight * scale, layer.operands(i)[0]), name
            steps.append(weight)
    assert not torch.equal(*steps[:2])


def test_what_has_one_number_for_all_steps_refuses_several():
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    quantizer = weight_quantizer(weight, 4, with_low_rank(maker(2), 1), None)
    with pytest.raises(ValueError, match=r"beside a part of low rank, got 2; set quantizer\.weight\.phases=1"):
        LowRankWeight.of(weight, quantizer)
    with pytest.raises(ValueError, match=r"of an input, got 2, .*; set quantizer\.activation\.phases=1"):
        maker(2, False, PerTensor())(4).of_input(1)
