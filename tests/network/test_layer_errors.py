"""Errors of sites: what each is by hand, where both kinds agree, and that float networks have none."""

import pytest
import torch

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import products_by_attention
from ptq_diffusion.network import Rescaling, quantize
from ptq_diffusion.network.attention import watching_operands
from ptq_diffusion.network.layer_errors import POWER, StepErrors
from tests.network.networks import FLOAT, WEIGHT, constant, observed, quantized, states, without_hooks
from tests.steps import at

LOW = LayerBits(4, 4)
STEP = at(500.0)


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


def measured(denoiser, network, repetitions=1):
    """The sums of a quantized network on the states of the float one, by kind and site; and the order of sites."""
    sites = denoiser.sites()
    errors = StepErrors(sites, STEP, {"q": network})
    with errors.of_float(denoiser.network):
        denoiser.predict(states(denoiser), STEP)
    with errors.of_quantized("q"):
        for _ in range(repetitions):
            network.predict(states(denoiser), STEP)
    assert without_hooks(denoiser.network) and without_hooks(network.network)
    names = [site.name for site in sites]
    return {kind: dict(zip(names, sums.tolist(), strict=True)) for kind, sums in errors.sums.items()}, errors.order


def recorded(network, predict, names):
    """The inputs and the outputs of layers in one forward, by name."""
    calls = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: calls.update({name: (inputs[0].clone(), output.clone())})
        )
        for name in names
    ]
    predict()
    for hook in hooks:
        hook.remove()
    return calls


def with_products(denoiser, qk, pv):
    """The quantized network whose attention products alone have few bits."""
    bits = {"qk": qk, "pv": pv}
    table = {site.name: bits.get(site.name.rpartition(".")[2], FLOAT) for site in denoiser.sites()}
    return quantize(denoiser, BitwidthPlan.constant(table), observed(denoiser), WEIGHT)


def test_errors_of_layers_are_those_of_their_inputs_and_outputs(denoiser):
    network = quantized(denoiser, LOW)
    sums, order = measured(denoiser, network)
    names = list(network.layers())
    exact = recorded(denoiser.network, lambda: denoiser.predict(states(denoiser), STEP), names)
    damaged = recorded(network.network, lambda: network.predict(states(denoiser), STEP), names)
    for name, (x, y) in exact.items():
        assert sums[POWER][name] == float(y.square().sum())
        assert sums["own_q"][name] == float((network.layer(name)(x) - y).square().sum()) > 0
        assert sums["accumulated_q"][name] == float((damaged[name][1] - y).square().sum()) > 0
    assert sorted(order) == sorted(site.name for site in denoiser.sites())
    assert order[-1] == "conv_out"


def test_a_layer_that_nothing_is_in_front_of_has_no_error_but_its_own(denoiser):
    sums, _ = measured(denoiser, quantized(denoiser, LOW))
    for name in ("conv_in", "time_embedding.linear_1"):
        assert sums["accumulated_q"][name] == sums["own_q"][name]
    assert sums["accumulated_q"]["conv_out"] != sums["own_q"]["conv_out"]


def test_a_network_in_float_has_no_error(denoiser):
    sums, _ = measured(denoiser, quantized(denoiser, FLOAT))
    assert {*sums["own_q"].values(), *sums["accumulated_q"].values()} == {0.0}
    assert min(sums[POWER].values()) > 0


def test_a_rescaling_counts_as_the_layers_own(denoiser):
    network = quantized(denoiser, FLOAT)
    channels = denoiser.network.conv_in.out_channels
    doubled = network.rescaled([{"conv_in": Rescaling(torch.full((channels,), 2.0), torch.zeros(channels))}])
    sums, _ = measured(denoiser, doubled)
    # 2 (w x + b) - (w x + b)
    assert sums["own_q"]["conv_in"] == pytest.approx(sums[POWER]["conv_in"], rel=1e-5)
    assert {name for name, error in sums["own_q"].items() if error} == {"conv_in"}


def test_calls_beside_those_of_the_float_network_are_left_out(denoiser):
    network = quantized(denoiser, LOW)
    assert measured(denoiser, network, repetitions=2) == measured(denoiser, network)


@pytest.mark.parametrize("product", ["qk", "pv"])
def test_errors_of_products_are_those_of_their_operands(denoiser, product):
    bits = {"qk": FLOAT, "pv": FLOAT} | {product: LayerBits(3, 3)}
    network = with_products(denoiser, **bits)
    sums, order = measured(denoiser, network)
    first = next(name for name in order if name.endswith(f".{product}"))
    attention = first.rpartition(".")[0]
    operands = {}
    with watching_operands(denoiser.network, [attention], lambda name, x: operands.update({name[-1]: x})):
        denoiser.predict(states(denoiser), STEP)
    settings = network.attentions()[attention].settings()
    y, y_q = (multiplied(denoiser, attention, product, these) for these in (operands, on_grids(operands, settings)))
    assert sums[POWER][first] == pytest.approx(float(y.square().sum()), rel=1e-5)
    assert sums["own_q"][first] == pytest.approx(float((y_q - y).square().sum()), rel=1e-5)
    assert sums["own_q"][first] > 0
    # The first product with few bits has exact operands in the quantized network too.
    assert sums["accumulated_q"][first] == pytest.approx(sums["own_q"][first], rel=1e-5)
    assert set(products_by_attention(denoiser.sites())) == set(network.attentions())


def on_grids(operands, settings):
    return {letter: settings[letter](operand, STEP.i) for letter, operand in operands.items()}


def multiplied(denoiser, attention, product, operands):
    layer = denoiser.network.get_submodule(attention)
    q, k, v = (layer.head_to_batch_dim(operands[letter]) for letter in "qkv")
    return torch.einsum("bld,bmd->blm", q, k) if product == "qk" else torch.einsum("blm,bmd->bld", operands["p"], v)


def test_float_products_in_a_quantized_network_have_only_the_error_of_what_is_before_them(denoiser):
    network = quantize(denoiser, constant(denoiser, LOW), observed(denoiser), WEIGHT)
    sums, order = measured(denoiser, network)
    products = [name for name in order if name.endswith((".qk", ".pv"))]
    assert products and {sums["own_q"][name] for name in products} == {0.0}
    assert min(sums["accumulated_q"][name] for name in products) > 0
