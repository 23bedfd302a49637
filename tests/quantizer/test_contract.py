"""What every quantizer with grids found beforehand promises with every search of conf/range_search and bitwidth."""

import itertools
import pickle
from functools import cache

import pytest
import torch

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.numeric.packing import pack, unpack
from ptq_diffusion.quantizer import State
from tests.quantizer.presets import OF_INPUTS, SEARCHES, STATIC

BITS = range(2, 9)
STREAMED = [name for name in STATIC if name in OF_INPUTS]


def channels_of_every_kind():
    """Six output channels: heavy tails, two scales, shifted, positive, negative, and nothing but zeros."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, 4, generator=draw)
    x[0] *= torch.randn(5, 4, 4, generator=draw).mul(1.5).exp()
    x[1] *= 0.01
    x[2] += 1.5
    x[3] = x[3].abs() + 0.2
    x[4] = -x[4].abs()
    x[5] = 0
    return x


X = channels_of_every_kind()
# Zeros of both signs, and what leaves the whole numbers that float32 holds exactly.
EXTREMES = torch.tensor([0.0, 1e-45, 2.0**24, 3e38, torch.inf, -0.0, -1e-45, -(2.0**24), -3e38, -torch.inf])
EXTREMES = EXTREMES.expand(6, 5, 10)


@pytest.fixture(scope="module")
def fresh(composed):
    """The quantizer of a name, a search and a bitwidth, before it saw anything."""

    @cache
    def factory(name, search):
        return construct(composed(f"+quantizer@made={name}", f"range_search@made.range_search={search}").made)

    return lambda name, search, bits: factory(name, search)(bits)


@pytest.fixture(scope="module")
def frozen(fresh):
    """The same after it saw X."""

    @cache
    def see(name, search, bits):
        quantizer = fresh(name, search, bits)
        quantizer.observe(X)
        quantizer.freeze()
        return quantizer

    return see


def cases(names):
    """Every bitwidth with one search, and every search with one bitwidth."""
    few = {("mse", bits) for bits in BITS} | {(search, 4) for search in SEARCHES}
    return [(name, *case) for name, case in itertools.product(names, sorted(few))]


every = pytest.mark.parametrize(("name", "search", "bits"), cases(STATIC))
every_search = pytest.mark.parametrize(("name", "search"), list(itertools.product(STATIC, SEARCHES)))
every_quantizer = pytest.mark.parametrize("name", STATIC)


def bits_of(x):
    return x.view(torch.int32)


@every
def test_forward_is_what_the_integers_stand_for_bit_for_bit(frozen, name, search, bits):
    quantizer = frozen(name, search, bits)
    for x in (X, 3 * X, X[..., :1, :2], X.to(memory_format=torch.channels_last), EXTREMES):
        integers = quantizer.to_integers(x)
        assert integers.dtype == torch.int32 and integers.shape == x.shape
        assert torch.equal(bits_of(quantizer(x)), bits_of(quantizer.from_integers(integers)))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_arithmetic_is_float32_whatever_the_dtype(frozen, name, search, bits, dtype):
    """The integers are those of the same values in float32, and the result is theirs in the input's dtype."""
    quantizer = frozen(name, search, bits)
    for x in (X.to(dtype), (300 * X).to(dtype), EXTREMES.to(dtype)):
        integers = quantizer.to_integers(x)
        assert torch.equal(integers, quantizer.to_integers(x.float()))
        expected = quantizer.from_integers(integers)
        assert expected.dtype == torch.float32
        for quantized in (quantizer(x), quantizer.differentiable(x)):
            assert quantized.dtype == dtype
            assert torch.equal(quantized, expected.to(dtype))
            assert torch.equal(quantized.signbit(), expected.to(dtype).signbit())


@every
def test_a_gradient_is_one_on_the_grid_and_zero_beyond(frozen, name, search, bits):
    quantizer = frozen(name, search, bits)
    steps = torch.arange(-(2.0**bits) - 3, 2.0**bits + 3, 0.37).expand(6, 5, -1)
    scale, zero_point = (
        quantizer.granularity.spread(part, steps.shape) for part in (quantizer.scale, quantizer.zero_point)
    )
    reached = scale * steps
    for dtype in (torch.float32, torch.bfloat16):
        x = reached.to(dtype, copy=True).requires_grad_()
        quantized = quantizer(x)
        assert torch.equal(quantized, quantizer(x.detach())) and not quantizer(x.detach()).requires_grad
        quantized.sum().backward()
        integers = (x.detach().float() * (1 / scale)).round() + zero_point
        inside = (integers >= quantizer.grid.low) & (integers <= quantizer.grid.high)
        assert inside.any() and not inside.all()
        assert torch.allclose(x.grad.float(), inside.float(), rtol=1e-6, atol=0)
    with torch.no_grad():
        assert not quantizer(x).requires_grad


@every
def test_quantizing_leaves_its_input_and_its_earlier_results(frozen, name, search, bits):
    quantizer, x = frozen(name, search, bits), X.clone()
    first = quantizer(x)
    kept = first.clone()
    quantizer(3 * X)
    assert torch.equal(x, X)
    assert torch.equal(first, kept)


@every
def test_integers_lie_on_a_grid_of_that_many_bits(frozen, name, search, bits):
    quantizer = frozen(name, search, bits)
    integers = quantizer.to_integers(torch.cat([X, -X, 1e4 * X], dim=3))
    assert integers.min() >= quantizer.grid.low and integers.max() <= quantizer.grid.high
    assert quantizer.grid.high - quantizer.grid.low == 2**bits - 1


@every
def test_an_error_is_half_a_step_at_most_within_the_grid(frozen, name, search, bits):
    quantizer = frozen(name, search, bits)
    scale, zero_point = quantizer.spread(X)
    within = (X >= scale * (quantizer.grid.low - zero_point)) & (X <= scale * (quantizer.grid.high - zero_point))
    assert within.any()
    assert ((quantizer(X) - X).abs() <= scale / 2 * (1 + 1e-5))[within].all()


@every
def test_integers_come_back_from_dense_storage(frozen, name, search, bits):
    quantizer = frozen(name, search, bits)
    codes = quantizer.to_integers(X) - quantizer.grid.low
    again = unpack(pack(codes, bits), bits, X.shape) + quantizer.grid.low
    assert torch.equal(quantizer.from_integers(again), quantizer(X))


@every
def test_quantizing_again_changes_nothing(frozen, name, search, bits):
    quantizer = frozen(name, search, bits)
    once = quantizer(2 * X)
    assert torch.equal(bits_of(quantizer(once)), bits_of(once))


@every
def test_zero_stays_zero(frozen, name, search, bits):
    quantizer = frozen(name, search, bits)
    assert torch.equal(bits_of(quantizer(torch.zeros_like(X))), bits_of(torch.zeros_like(X)))
    assert not quantizer(X)[5].any()


@every
def test_larger_values_do_not_become_smaller(frozen, name, search, bits):
    line = torch.linspace(-1.5, 1.5, 500).mul(X.abs().max()).expand(6, 5, 500)
    quantized = frozen(name, search, bits)(line)
    assert (quantized.diff(dim=2) >= 0).all()
    assert len(quantized[0].unique()) > 1


@every_quantizer
def test_the_squared_error_does_not_grow_with_bits(frozen, name):
    errors = [(frozen(name, "mse", bits)(X) - X).square().mean().item() for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


@every_search
def test_the_way_leads_from_observing_to_frozen_only(fresh, name, search):
    quantizer = fresh(name, search, 4)
    for use in (quantizer, quantizer.to_integers):
        with pytest.raises(RuntimeError, match="expected a quantizer that is frozen"):
            use(X)
    with pytest.raises(RuntimeError, match="nothing was observed"):
        quantizer.freeze()
    assert quantizer.state is State.OBSERVING
    quantizer.observe(X)
    quantizer.freeze()
    assert quantizer.state is State.FROZEN
    for use in (
        quantizer.freeze,
        quantizer.observation,
        lambda: quantizer.observe(X),
        lambda: quantizer.observed({}),
    ):
        with pytest.raises(RuntimeError, match="expected a quantizer that is observing"):
            use()


@every_search
def test_observing_leaves_the_tensor_as_it_is(frozen, fresh, name, search):
    quantizer = fresh(name, search, 4)
    seen = X.clone().requires_grad_()
    quantizer.observe(seen)
    quantizer.freeze()
    assert torch.equal(seen, X)
    assert not any(buffer.requires_grad for buffer in quantizer.buffers())
    assert torch.equal(quantizer(X), frozen(name, search, 4)(X))


@every_search
def test_what_was_observed_is_dropped(fresh, name, search):
    """Statistics are larger than what they become, and go with it wherever it is copied."""
    quantizer = fresh(name, search, 4)
    empty = len(pickle.dumps(quantizer))
    quantizer.observe(X)
    observing = len(pickle.dumps(quantizer))
    quantizer.freeze()
    assert len(pickle.dumps(quantizer)) < min(observing, empty + 1000)


@pytest.mark.parametrize(("name", "search", "bits"), cases(STREAMED))
def test_what_another_observed_makes_the_same_quantizer(frozen, fresh, name, search, bits):
    """Of any bits, and in place of what was observed before."""
    for other in (2, 8):
        origin, heir = fresh(name, search, other), fresh(name, search, bits)
        origin.observe(X)
        heir.observe(torch.ones_like(X))
        observation = {part: tensor.clone() for part, tensor in origin.observation().items()}
        heir.observed(observation)
        heir.freeze()
        assert torch.equal(bits_of(heir(3 * X)), bits_of(frozen(name, search, bits)(3 * X)))
        assert torch.equal(heir.to_integers(X), frozen(name, search, bits).to_integers(X))
        origin.observe(3 * X)
        assert any(not torch.equal(tensor, observation[part]) for part, tensor in origin.observation().items())


@pytest.mark.parametrize("name", STREAMED)
def test_observing_goes_on_from_what_another_observed(fresh, name):
    """In any parts, and the other's observations stay as they are."""
    origin, heir, whole = (fresh(name, "mse", 4) for _ in range(3))
    origin.observe(X)
    before = {part: tensor.clone() for part, tensor in origin.observation().items()}
    heir.observed(origin.observation())
    heir.observe(3 * X)
    for part, tensor in origin.observation().items():
        assert torch.equal(tensor, before[part])
    for seen in (3 * X, X):
        whole.observe(seen)
    for quantizer in (heir, whole):
        quantizer.freeze()
    assert torch.equal(heir.scale, whole.scale) and torch.equal(heir.zero_point, whole.zero_point)


@pytest.mark.parametrize("name", STREAMED)
def test_what_several_observed_is_what_one_sees_of_all(fresh, name):
    """Of ranges that differ by powers of two, in any order."""
    parts, whole, heir = (X, 0.01 * X, 30 * X), fresh(name, "mse", 4), fresh(name, "mse", 4)
    observations = []
    for part in parts:
        own = fresh(name, "mse", 4)
        for quantizer in (own, whole):
            quantizer.observe(part)
        observations.append(own.observation())
    heir.observed(*reversed(observations))
    for quantizer in (heir, whole):
        quantizer.freeze()
    assert torch.equal(heir.scale, whole.scale) and torch.equal(heir.zero_point, whole.zero_point)


@every_quantizer
def test_observations_of_another_kind_are_refused(fresh, name):
    quantizer = fresh(name, "mse", 4)
    with pytest.raises(RuntimeError, match="nothing was observed"):
        quantizer.observation()
    for other in ({}, {"counts": torch.zeros(8)}, {"scale": torch.ones(1)}):
        with pytest.raises(ValueError, match="expected histograms for a quantizer of inputs.*calibrate again"):
            quantizer.observed(other)
