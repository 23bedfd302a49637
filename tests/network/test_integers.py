"""Stored weights and tables take the bytes that their bits need, and are the quantizer's numbers bit for bit."""

import copy
import itertools

import pytest
import torch
from torch import nn

from ptq_diffusion.network import (
    FloatWeight,
    InputObservations,
    QuantizedWeight,
    load_quantized,
    quantize,
    save_quantized,
)
from ptq_diffusion.network.embedding import embeddings, quantized_embeddings
from ptq_diffusion.network.integers import stored_weight
from ptq_diffusion.network.saving import TENSORS
from ptq_diffusion.quantizer import AffineQuantizer, EmbeddingTables, LpSearch, PerChannel, PerGroup, PerTensor
from tests.model.networks import around, condition_of, random_network, states_of
from tests.network.networks import FLOAT, constant
from tests.network.test_families import ACTIVATION, STEPS, WEIGHT, whole_range

SHAPES = [(6, 5, 3, 3), (7, 3), (5, 3, 1, 1)]
GRANULARITIES = [PerTensor(), PerChannel(), PerChannel(axis=1), PerGroup(2), PerGroup(4)]
every = pytest.mark.parametrize(
    ("bits", "symmetric", "granularity"), list(itertools.product(range(2, 9), (True, False), GRANULARITIES))
)
BITS = (2, 4, 8)
TABLES = {
    "dit": {},
    "classes": {},
    "prompts and classes": {},
    "pixels": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
}
"""Networks with tables, of classes or of times."""
KINDS = [
    (True, PerChannel()),
    (False, PerChannel()),
    (True, PerTensor()),
    (False, PerGroup(2)),
]


def drawn(shape):
    """Channels of different scale, one of them positive and one nothing but zeros."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    w *= torch.logspace(-2, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
    w[1], w[2] = w[1].abs() + 0.5, 0
    return w


def frozen(weight, bits, symmetric, granularity):
    quantizer = AffineQuantizer(bits, symmetric, granularity, LpSearch(2, 8), 256)
    quantizer.observe(weight)
    quantizer.freeze()
    return quantizer


def bits_of(x):
    return x.view(torch.int32)


@every
def test_bytes_are_those_of_the_bits_and_values_are_the_quantizers(bits, symmetric, granularity):
    for shape in SHAPES:
        weight = drawn(shape)
        quantizer = frozen(weight, bits, symmetric, granularity)
        stored = QuantizedWeight.of(weight, quantizer)
        assert stored.packed.dtype == torch.uint8 and stored.packed.numel() == -(-weight.numel() * bits // 8)
        assert (stored.bits, stored.symmetric) == (bits, symmetric)
        assert torch.equal(bits_of(stored.values()), bits_of(quantizer(weight)))


@every
def test_tensors_make_the_same_weight(bits, symmetric, granularity):
    weight = drawn(SHAPES[0])
    stored = QuantizedWeight.of(weight, frozen(weight, bits, symmetric, granularity))
    tensors = stored.tensors()
    assert ("zero_point" in tensors) is not symmetric
    again = stored_weight(tensors, bits, symmetric, SHAPES[0])
    assert torch.equal(bits_of(again.values()), bits_of(stored.values()))
    assert (again.bits, again.symmetric) == (bits, symmetric)


@every
def test_a_gain_is_in_the_scales(bits, symmetric, granularity):
    """The same integers times other scales; as a factor behind the values but for the last bit."""
    weight, gain = drawn(SHAPES[0]), torch.linspace(0.5, 3, 6)
    stored = QuantizedWeight.of(weight, frozen(weight, bits, symmetric, granularity))
    plain, scaled = stored.values(), stored.values(gain)
    assert torch.allclose(scaled, plain * gain.view(-1, 1, 1, 1), rtol=3e-7, atol=0)
    if granularity != PerChannel(axis=1):  # Whose scales have no place for a factor of output channels.
        scale = stored.scale * (gain if stored.scale.ndim == 1 else gain[:, None])
        zero_points = {"zero_point": stored.zero_point.expand(scale.shape)} if not symmetric else {}
        other = stored_weight(stored.tensors() | {"scale": scale} | zero_points, bits, symmetric, SHAPES[0])
        assert torch.equal(bits_of(other.values()), bits_of(scaled))
    assert torch.equal(stored.values(), plain), "values without a gain stay as they were"


def test_what_is_computed_with_follows_the_tensors():
    weight = drawn(SHAPES[0])
    stored = QuantizedWeight.of(weight, frozen(weight, 4, True, PerChannel()))
    before = stored.values()
    doubled = copy.deepcopy(stored)._apply(lambda tensor: 2 * tensor if tensor.is_floating_point() else tensor)
    assert torch.equal(doubled.values(), 2 * before) and torch.equal(stored.values(), before)


def test_a_float_weight_is_the_tensor_itself():
    weight = drawn(SHAPES[0])
    stored = FloatWeight(weight)
    assert stored.values() is weight and stored.bits == 32
    assert torch.equal(stored.values(torch.full((6,), 2.0)), 2 * weight)
    assert torch.equal(stored_weight(stored.tensors(), 32, True, SHAPES[0]).values(), weight)


def test_groups_of_one_size_have_one_grid_each():
    """Each is the weight of that size alone, and groups of all input channels are output channels."""
    weight = drawn((4, 6, 3, 3))
    whole = QuantizedWeight.of(weight, frozen(weight, 4, False, PerGroup(4)))
    for part in (slice(0, 4), slice(4, 6)):
        alone = weight[:, part].contiguous()
        expected = QuantizedWeight.of(alone, frozen(alone, 4, False, PerChannel())).values()
        assert torch.equal(whole.values()[:, part], expected)
    by_group, by_channel = (
        QuantizedWeight.of(weight, frozen(weight, 4, False, kind)) for kind in (PerGroup(6), PerChannel())
    )
    assert torch.equal(by_group.packed, by_channel.packed) and torch.equal(by_group.values(), by_channel.values())


def test_other_kinds_of_quantizers_are_refused():
    with pytest.raises(TypeError, match="expected an AffineQuantizer of a weight, got Identity"):
        QuantizedWeight.of(drawn(SHAPES[0]), torch.nn.Identity())


def changed(granularity=GRANULARITIES[1], **tensors):
    weight = drawn((6, 5))
    return {**QuantizedWeight.of(weight, frozen(weight, 4, False, granularity)).tensors(), **tensors}


@pytest.mark.parametrize(
    ("tensors", "bits", "message"),
    [
        (changed(), 5, "19 bytes"),
        (changed(), 9, "2 to 8 bits"),
        (changed(packed=torch.zeros(14).byte()), 4, "15 bytes"),
        (changed(packed=torch.zeros(15)), 4, "15 bytes"),
        (changed(scale=torch.ones(5), zero_point=torch.zeros(5).int()), 4, "each of 6 output channels or one"),
        (changed(scale=torch.ones(1)), 4, "each of 6 output channels or one"),
        (changed(scale=torch.ones(6).double()), 4, "positive scales of torch.float32"),
        (changed(scale=torch.zeros(6)), 4, "positive scales"),
        (changed(scale=torch.full((6,), torch.inf)), 4, "positive scales"),
        (changed(scale=torch.full((6,), torch.nan)), 4, "positive scales"),
        (changed(zero_point=torch.zeros(6)), 4, "zero points of torch.int32"),
        (changed(PerGroup(2), group_size=torch.tensor([3])), 4, r"PerGroup\(size=3\) .*got \(6, 3\)"),
        (changed(PerGroup(2), group_size=torch.tensor([0])), 4, "1 input channel or more, got size=0"),
        (changed(PerChannel(1), scale=torch.ones(1, 6), zero_point=torch.zeros(1, 6).int()), 4, r"got \(1, 6\)"),
        ({"weight": torch.ones(5, 6)}, 32, r"a weight of \(6, 5\)"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(tensors, bits, message):
    with pytest.raises(ValueError, match=message):
        stored_weight(tensors, bits, False, (6, 5))


@pytest.mark.parametrize("name", ["packed", "scale", "zero_point"])
def test_a_missing_tensor_is_refused(name):
    with pytest.raises(KeyError, match=name):
        stored_weight({key: tensor for key, tensor in changed().items() if key != name}, 4, False, (6, 5))


def in_integers(denoiser, bits, weight=WEIGHT):
    """The network in float but for its tables."""
    nothing = InputObservations(denoiser.sites(), ACTIVATION)
    return quantize(denoiser, constant(denoiser, FLOAT), nothing, weight, table_bits=bits)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_on_the_grid_of_weights_and_comes_back(name, tmp_path):
    denoiser = around(random_network(name, **TABLES[name]))
    x, condition = states_of(denoiser), condition_of(denoiser)
    outputs, sizes, fingerprints = [], [], {in_integers(denoiser, 32).fingerprint()}
    for bits in BITS:
        network = in_integers(denoiser, bits)
        tables = quantized_embeddings(network.network)
        assert tables.keys() == embeddings(denoiser.network).keys() and not embeddings(network.network)
        for place, table in tables.items():
            rows, quantizer = denoiser.network.get_submodule(place).weight, WEIGHT(bits)
            quantizer.observe(rows)
            quantizer.freeze()
            assert torch.equal(table(torch.arange(len(rows))), quantizer(rows))
        save_quantized(network, tmp_path)
        loaded = load_quantized(tmp_path)
        outputs.append(network.predict(x, STEPS[0], condition).m)
        assert torch.equal(loaded.predict(x, STEPS[0], condition).m, outputs[-1])
        assert loaded.fingerprint() == network.fingerprint()
        fingerprints.add(network.fingerprint())
        sizes.append((tmp_path / TENSORS).stat().st_size)
    assert len(fingerprints) == 1 + len(BITS)
    # Both headers are the same but for digits of sizes.
    numbers = sum(table.weight.numel() for table in embeddings(denoiser.network).values())
    assert abs(sizes[2] - sizes[1] - numbers // 2) < 64
    exact = denoiser.predict(x, STEPS[0], condition).m
    errors = [float((m - exact).square().mean()) for m in outputs]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 10


@pytest.mark.parametrize(("symmetric", "granularity"), KINDS)
def test_every_granularity_of_weights_serves_tables(symmetric, granularity, tmp_path):
    denoiser, weight = around(random_network("dit")), whole_range(symmetric, granularity)
    network = in_integers(denoiser, 4, weight)
    save_quantized(network, tmp_path)
    for place, table in quantized_embeddings(load_quantized(tmp_path).network).items():
        rows, quantizer = denoiser.network.get_submodule(place).weight, weight(4)
        quantizer.observe(rows)
        quantizer.freeze()
        assert torch.equal(table(torch.tensor([[3], [0]])), quantizer(rows)[[3, 0]][:, None])


def test_rows_have_the_dtype_of_the_network(tmp_path):
    denoiser = around(random_network("dit"))
    half = denoiser.with_network(random_network("dit").to(torch.bfloat16).eval().requires_grad_(False))
    assert {
        table(torch.tensor([1])).dtype for table in quantized_embeddings(in_integers(half, 4).network).values()
    } == {torch.bfloat16}


def test_other_bits_and_rows_that_are_scaled_are_refused():
    for bits in (1, 9, 16):
        with pytest.raises(ValueError, match=f"2 to 8 bits .* or 32 for float, got quantizer.embedding.bits={bits}"):
            EmbeddingTables(bits)
    with pytest.raises(ValueError, match=r"max_norm at 0; set quantizer.embedding.bits=32"):
        embeddings(nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)))
