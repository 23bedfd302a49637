"""Attention's products: float where a plan says so, bit for bit; on the grids of what was observed where not."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from safetensors.torch import load_file

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import products_by_attention
from ptq_diffusion.network import InputObservations, QuantizedAttention, load_quantized, quantize, save_quantized
from ptq_diffusion.network.attention import watching_operands
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, MinMax, PerChannel, PerTensor

FLOAT, EIGHT = LayerBits(32, 32), LayerBits(8, 8)
PRODUCTS = ("qk", "pv")
STEPS = 3


def weight_quantizer(bits):
    return AffineQuantizer(bits, symmetric=True, granularity=PerChannel(), range_search=LpSearch(2, 16), bins=1024)


def tensor_quantizer(bits):
    return AffineQuantizer(bits, symmetric=False, granularity=PerTensor(), range_search=MinMax(), bins=1024)


def step(i):
    return SimpleNamespace(i=i, t=float(900 - 400 * i), input_scale=1.0)


def states(denoiser):
    return torch.randn(3, *denoiser.shape, generator=torch.Generator().manual_seed(0))


def plan(denoiser, attention, layers=FLOAT):
    """Bits of all products, of one step or by step, and of all layers."""
    series = [attention] if isinstance(attention, LayerBits) else attention
    return BitwidthPlan.by_step(
        [{site.name: layers if site.weighted else bits for site in denoiser.sites()} for bits in series]
    )


def outputs(denoiser):
    return torch.stack([denoiser.predict(states(denoiser), step(i)).m for i in range(STEPS)])


def attentions(denoiser):
    return {name: part for name, part in denoiser.network.named_modules() if isinstance(part, Attention)}


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    # Random queries and keys are so small that p is nearly the same everywhere.
    for attention in attentions(model).values():
        for layer in (attention.to_q, attention.to_k):
            layer.weight.mul_(3)
    return model


@pytest.fixture(scope="module")
def observations(denoiser):
    observed = InputObservations(denoiser.sites(), tensor_quantizer)
    with observed.observing(denoiser.network):
        outputs(denoiser)
    return observed


@pytest.fixture
def made(denoiser, observations):
    def make(attention, layers=FLOAT):
        return quantize(denoiser, plan(denoiser, attention, layers), observations, weight_quantizer)

    return make


# Float.


@pytest.mark.parametrize("layers", [FLOAT, LayerBits(4, 8)])
def test_float_products_keep_their_kernel(denoiser, made, layers):
    float_attention = made(FLOAT, layers)
    kinds = [type(attention.processor) for attention in attentions(denoiser).values()]
    assert [type(attention.processor) for attention in attentions(float_attention).values()] == kinds
    assert not float_attention.attentions() and not made(FLOAT).settings.keys() - made(FLOAT).layers().keys()
    if layers == FLOAT:
        assert torch.equal(outputs(float_attention), outputs(denoiser))


def test_the_float_network_is_not_changed(denoiser, made):
    before, processors = outputs(denoiser), [part.processor for part in attentions(denoiser).values()]
    made(LayerBits(2, 2)).predict(states(denoiser), step(0))
    assert [part.processor for part in attentions(denoiser).values()] == processors
    assert torch.equal(outputs(denoiser), before)


def test_a_step_of_float_products_is_that_of_the_float_kernel(denoiser, made):
    """Bits by step: every step is that of the plan that has its bits throughout."""
    series = [FLOAT, EIGHT, LayerBits(4, 6)]
    varying = outputs(made(series))
    for i, bits in enumerate(series):
        assert torch.equal(varying[i], outputs(made(bits))[i])
    assert torch.equal(varying[0], outputs(denoiser)[0]) and not torch.equal(varying[1], outputs(denoiser)[1])


# Quantized.


def test_more_bits_are_closer_to_float(denoiser, made):
    expected = outputs(denoiser)
    errors = [float((outputs(made(LayerBits(b, b))) - expected).square().mean()) for b in (8, 6, 4, 2)]
    assert 0 < errors[0] < errors[1] < errors[2] < errors[3]
    assert errors[0] < 1e-3 * float(expected.square().mean())


@pytest.mark.parametrize("bits", [LayerBits(8, 8), LayerBits(3, 5), LayerBits(32, 4), LayerBits(4, 32)])
@pytest.mark.parametrize("product", ["qk", "pv", "both"])
def test_one_attention_by_hand(denoiser, observations, bits, product):
    """Operands on their grids by torch's own operator, then softmax(q k^T / sqrt(d)) v, head by head."""
    name = "mid_block.attentions.0"
    wanted = [f"{name}.{pair}" for pair in PRODUCTS if product in (pair, "both")]
    layers = {site.name: bits if site.name in wanted else FLOAT for site in denoiser.sites()}
    network = quantize(denoiser, BitwidthPlan.constant(layers), observations, weight_quantizer)
    assert list(network.attentions()) == [name]
    series = {f"{name}.{pair[0]}": bits.activation for pair in PRODUCTS if f"{name}.{pair}" in wanted}
    series |= {f"{name}.{pair[1]}": bits.weight for pair in PRODUCTS if f"{name}.{pair}" in wanted}

    def faked(x, letter):
        own = series.get(f"{name}.{letter}", 32)
        if own == 32:
            return x
        quantizer = observations.quantizer(f"{name}.{letter}", own)
        scale, zero_point, grid = quantizer.scale.item(), quantizer.zero_point.item(), quantizer.grid
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.low, grid.high)

    attention = denoiser.network.get_submodule(name)
    x = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(3))
    rows = attention.group_norm(x.flatten(2)).transpose(1, 2)
    q, k, v = (
        layer(rows).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    scores = faked(q, "q") @ faked(k, "k").mT / (q.shape[-1] ** 0.5)
    mixed = faked(scores.softmax(-1), "p") @ faked(v, "v")
    said = attention.to_out[0](mixed.transpose(1, 2).flatten(2)).mT.unflatten(-1, (4, 4))
    expected = (said + x) / attention.rescale_output_factor
    torch.testing.assert_close(network.network.get_submodule(name)(x), expected, rtol=1e-5, atol=1e-5)
    assert attention.residual_connection and attention.heads == 2


def test_layers_stay_those_with_weights(denoiser, made):
    quantized = made(EIGHT, LayerBits(4, 8))
    weighted = [site.name for site in denoiser.sites() if site.weighted]
    assert list(quantized.layers()) == weighted and len(quantized.inner_layers()) == len(weighted) - 1
    operands = [f"{name}.{letter}" for name in quantized.attentions() for letter in "qkpv"]
    assert list(quantized.settings) == weighted + operands
    assert list(quantized.attentions()) == list(products_by_attention(denoiser.sites()))


def test_p_lies_on_an_unsigned_grid(made):
    for attention in made(EIGHT).attentions().values():
        p = attention.settings()["p"]
        # Its lowest integer stands for 0.
        assert int(p.zero_point) == p.grid(0).low


def test_other_settings_are_other_networks(denoiser, made):
    quantized = made([EIGHT, LayerBits(4, 4), LayerBits(2, 2)])
    before, second = outputs(quantized), quantized.settings.at(1)
    other = quantized.with_settings(second)
    assert torch.equal(other.predict(states(denoiser), step(1)).m, before[1])
    assert torch.equal(outputs(quantized), before), "this one stays as it is"
    assert {id(part) for part in other.attentions().values()}.isdisjoint(map(id, quantized.attentions().values()))
    assert {len(settings) for settings in other.settings.values()} == {1}


# Saving.


@pytest.mark.parametrize("attention", [FLOAT, EIGHT, [FLOAT, EIGHT, LayerBits(4, 6)]], ids=["float", "8", "by step"])
def test_a_saved_network_comes_back_bit_for_bit(denoiser, made, tmp_path, attention):
    quantized = made(attention, LayerBits(4, 6))
    save_quantized(quantized, tmp_path)
    back = load_quantized(tmp_path)
    assert torch.equal(outputs(back), outputs(quantized))
    for name, settings in quantized.settings.items():
        for i in range(STEPS if len(quantized.plan.weight["mid_block.attentions.0.qk"]) > 1 else 1):
            ours, theirs = settings.at(i), back.settings[name].at(i)
            assert all(torch.equal(tensor, theirs.get_buffer(part)) for part, tensor in ours.named_buffers())
    stored = load_file(tmp_path / "quantized.safetensors")
    assert not any("processor" in name or name.endswith((".qk", ".pv")) for name in stored), "products store nothing"
    again = tmp_path / "again"
    again.mkdir()
    save_quantized(back, again)
    assert load_quantized(again).fingerprint() == back.fingerprint()


def test_settings_of_operands_are_in_the_fingerprint(made):
    fingerprints = {made(LayerBits(*bits)).fingerprint() for bits in itertools.product((4, 8, 32), repeat=2)}
    assert len(fingerprints) == 9
    quantized = made(EIGHT)
    before = quantized.fingerprint()
    quantized.attentions()["mid_block.attentions.0"].settings()["p"].scale.mul_(2)
    assert quantized.fingerprint() != before


# Observation.


def test_observing_changes_nothing(denoiser):
    expected, processors = outputs(denoiser), [part.processor for part in attentions(denoiser).values()]
    observed = InputObservations(denoiser.sites(), tensor_quantizer)
    with observed.observing(denoiser.network):
        assert torch.equal(outputs(denoiser), expected)
    with pytest.raises(RuntimeError, match="on the way"), observed.observing(denoiser.network):
        raise RuntimeError("on the way")
    assert [part.processor for part in attentions(denoiser).values()] == processors
    for part in denoiser.network.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks


def test_the_operands_that_are_seen_give_the_layers_output(denoiser):
    """softmax(q k^T / sqrt(d)) v of what was seen, projected, is what the float layer says."""
    names, seen, said = list(attentions(denoiser)), {}, {}
    hooks = [
        part.to_out[0].register_forward_hook(lambda _, inputs, __, name=name: said.update({name: inputs[0]}))
        for name, part in attentions(denoiser).items()
    ]
    with watching_operands(denoiser.network, names, lambda name, x: seen.update({name: x})):
        denoiser.predict(states(denoiser), step(0))
    for hook in hooks:
        hook.remove()
    assert seen.keys() == {f"{name}.{letter}" for name in names for letter in "qkvp"}
    for name, part in attentions(denoiser).items():
        p, v = seen[f"{name}.p"], part.head_to_batch_dim(seen[f"{name}.v"])
        assert p.min() >= 0 and torch.allclose(p.sum(-1), torch.ones(p.shape[:2]))
        torch.testing.assert_close(part.batch_to_head_dim(p @ v), said[name])
        q, k = (part.head_to_batch_dim(seen[f"{name}.{letter}"]) for letter in "qk")
        torch.testing.assert_close(p, (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1))


def test_one_observation_serves_all_bits_and_comes_back(denoiser, observations, tmp_path):
    observations.save(tmp_path / "inputs.safetensors")
    back = InputObservations(denoiser.sites(), tensor_quantizer)
    back.restore(tmp_path / "inputs.safetensors")
    operands = [name for site in denoiser.sites() for name in site.operands]
    assert len(operands) == len(set(operands))
    for name, bits in itertools.product(operands, (2, 8)):
        ours, theirs = observations.quantizer(name, bits), back.quantizer(name, bits)
        assert torch.equal(ours.scale, theirs.scale) and torch.equal(ours.zero_point, theirs.zero_point)


# The rest of an attention layer.


@pytest.mark.parametrize(
    "options",
    [
        {"rescale_output_factor": 3.0, "residual_connection": True, "norm_num_groups": 4},
        {"upcast_softmax": True, "upcast_attention": True, "bias": True},
        {"spatial_norm_dim": 6},
        {"scale_qk": False},
    ],
    ids=lambda options: next(iter(options)),
)
def test_all_but_the_operands_is_the_layers_own(made, options):
    """Norms, residual, scales and upcasts: eight bits are close to `AttnProcessor`."""
    layer = Attention(query_dim=32, heads=2, dim_head=16, **options).eval().requires_grad_(False)
    template = made(EIGHT).attentions()["mid_block.attentions.0"]
    x, temb = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(1)), torch.ones(2, 6, 4, 4)
    layer.set_processor(AttnProcessor())
    expected = layer(x, temb=temb)
    settings, seen = {}, {}
    with watching_operands(torch.nn.ModuleDict({"a": layer}), ["a"], lambda name, value: seen.update({name: value})):
        layer(x, temb=temb)
    for letter, own in template.settings().items():
        quantizer = tensor_quantizer(8)
        quantizer.observe(seen[f"a.{letter}"])
        quantizer.freeze()
        settings[letter] = type(own)(own.bits, quantizer.scale, quantizer.zero_point, own.copy, symmetric=False)
    layer.set_processor(QuantizedAttention(layer.processor, settings, template.current))
    error = (layer(x, temb=temb) - expected).square().mean() / expected.square().mean()
    assert 0 < error < 1e-3
