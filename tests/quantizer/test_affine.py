"""The affine quantizer equals torch's own operators and observers, and granularity only helps."""

import itertools

import pytest
import torch

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, MinMax, Numbers, Percentile

MSE = LpSearch(p=2, candidates=80)


def weights(seed=0):
    """Heavy-tailed, each channel with its own scale and offset."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 6, 3, 3, generator=draw) * torch.randn(8, 6, 3, 3, generator=draw).exp()
    return x * torch.logspace(-3, 1, 8).view(8, 1, 1, 1) + torch.randn(8, 1, 1, 1, generator=draw) * 0.1


def frozen(bits, symmetric, per_channel, search=MSE, x=None, bins=8192):
    quantizer = AffineQuantizer(bits, symmetric, per_channel, search, bins)
    quantizer.observe(weights() if x is None else x)
    quantizer.freeze()
    return quantizer


every = pytest.mark.parametrize(
    ("bits", "symmetric", "per_channel"), list(itertools.product(range(2, 9), (True, False), (True, False)))
)


@every
def test_equals_the_fake_quantization_of_torch_bit_for_bit(bits, symmetric, per_channel):
    quantizer = frozen(bits, symmetric, per_channel)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    # Ties, and what rounding in float32 could turn into ties.
    step = quantizer.scale.view(-1, 1, 1, 1)
    ties = step * (torch.arange(-20, 20).view(1, -1, 1, 1) + 0.5)
    for x in (
        weights(),
        5 * weights(1),
        ties.expand(8, -1, 1, 1),
        ties.nextafter(torch.tensor(9.0)).expand(8, -1, 1, 1),
    ):
        if per_channel:
            expected = torch.fake_quantize_per_channel_affine(x, quantizer.scale, quantizer.zero_point, 0, low, high)
        else:
            scale, zero_point = quantizer.scale.item(), quantizer.zero_point.item()
            expected = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
        assert torch.equal(quantizer(x).view(torch.int32), expected.view(torch.int32))
        assert torch.equal(quantizer.from_integers(quantizer.to_integers(x)), expected)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-6, 7e4])
def test_bounds_that_hold_the_zero_point_are_adding_it_and_subtracting_it(bits, scale):
    """x_hat = s (clamp(round(x / s) + z, low, high) - z), pass by pass, for every zero point, bit for bit."""
    high = 2**bits - 1
    ends = torch.tensor([2.0**23 + 1, 2.0**24, 2.0**24 + 2, 2.0**31, torch.inf, torch.nan, 1e-9, 0.0])
    steps = torch.cat([torch.arange(-2 * high, 2 * high, 0.25), ends, -ends])
    x = torch.cat([steps, weights().flatten()]) * scale
    for z in range(high + 1):
        numbers = Numbers.of(torch.tensor([scale]), torch.tensor([z], dtype=torch.int32), Grid(bits, False))
        expected = ((x * (1 / torch.tensor(scale))).round() + z).clamp(0, high).sub(z).mul(torch.tensor(scale))
        assert torch.equal(numbers.fake_quantized(x).view(torch.int32), expected.view(torch.int32))


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*")
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0, 100.0])
def test_min_max_equals_the_observers_of_torch(bits, shift):
    from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

    x = weights() + shift
    options = {"dtype": torch.quint8, "quant_min": 0, "quant_max": 2**bits - 1}
    for per_channel, observer in ((False, MinMaxObserver(**options)), (True, PerChannelMinMaxObserver(**options))):
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        quantizer = frozen(bits, False, per_channel, MinMax(), x)
        assert torch.equal(quantizer.scale, scale)
        assert torch.equal(quantizer.zero_point, zero_point.int())


@every
def test_min_max_clips_nothing(bits, symmetric, per_channel):
    quantizer = frozen(bits, symmetric, per_channel, MinMax())
    x = weights()
    half = quantizer.scale.view(-1, 1, 1, 1) / 2
    # An affine grid's ends shift by up to half a step, when its zero point is rounded.
    assert ((quantizer(x) - x).abs() <= half * (1.001 if symmetric else 2.001)).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_grid_for_each_channel_has_no_larger_error(bits, symmetric):
    x = weights()
    shared, own = ((frozen(bits, symmetric, per_channel)(x) - x).square() for per_channel in (False, True))
    assert own.mean() < shared.mean()


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_zero_point_has_no_larger_error_on_one_sided_data(bits):
    x = weights().abs()
    free, fixed = ((frozen(bits, symmetric, True, x=x)(x) - x).square() for symmetric in (False, True))
    assert (free.mean((1, 2, 3)) <= fixed.mean((1, 2, 3))).all()


@every
def test_one_channel_is_a_tensor(bits, symmetric, per_channel):
    """A channel's grid depends on that channel only."""
    x = weights()
    if per_channel:
        alone = frozen(bits, symmetric, True, x=x[3:4])
        assert torch.equal(alone(x[3:4]), frozen(bits, symmetric, True)(x)[3:4])
    else:
        parts = AffineQuantizer(bits, symmetric, False, MSE, 8192)
        for part in x.flip(0).split(1):
            parts.observe(part)
        parts.freeze()
        assert torch.equal(parts(x), frozen(bits, symmetric, False)(x))


def test_a_bin_stands_for_no_value_beyond_those_seen():
    """The centre of the bin of -0.3 is -0.25 here, above everything that was seen."""
    x = torch.tensor([-0.9] + 1000 * [-0.3])
    quantizer = frozen(8, False, False, Percentile(99), x, bins=4)
    assert torch.allclose(quantizer(x[1:]), x[1:])


def test_a_second_weight_is_refused():
    quantizer = AffineQuantizer(4, True, True, MSE, 8192)
    quantizer.observe(weights())
    with pytest.raises(RuntimeError, match="this is its second"):
        quantizer.observe(weights())


@every
def test_scale_and_zero_point_are_safe_to_store(bits, symmetric, per_channel):
    quantizer = frozen(bits, symmetric, per_channel)
    count = 8 if per_channel else 1
    assert quantizer.scale.shape == quantizer.zero_point.shape == (count,)
    assert quantizer.scale.dtype == torch.float32 and quantizer.zero_point.dtype == torch.int32
    assert (quantizer.scale > 0).all() and quantizer.scale.isfinite().all()
    if symmetric:
        assert not quantizer.zero_point.any()
    assert list(dict(quantizer.named_buffers())) == ["scale", "zero_point"]
    assert list(quantizer.parameters()) == []


@every
def test_a_tensor_of_zeros_is_kept(bits, symmetric, per_channel):
    zeros = torch.zeros(3, 4)
    assert torch.equal(frozen(bits, symmetric, per_channel, x=zeros)(zeros), zeros)


@pytest.mark.parametrize("bits", [1, 9, 32])
def test_other_bitwidths_are_refused(bits):
    with pytest.raises(ValueError, match="expected 2 to 8 bits"):
        AffineQuantizer(bits, True, True, MSE, 8192)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes(symmetric, per_channel):
    """round(x / s) - x / s on the grid; the grid's end, measured from zero, beyond."""
    quantizer = frozen(3, symmetric, per_channel, MinMax())
    quantizer.scale.requires_grad_()
    x = 2 * weights()
    quantizer(x).sum().backward()
    scale, zero_point = (part.detach().view(-1, 1, 1, 1) for part in (quantizer.scale, quantizer.zero_point))
    position, low, high = x / scale, quantizer.grid.low - zero_point, quantizer.grid.high - zero_point
    rounded = position.round()
    inside = (rounded >= low) & (rounded <= high)
    slope = torch.where(inside, rounded - position, rounded.clamp(low, high))
    expected = slope.sum((1, 2, 3)) if per_channel else slope.sum()[None]
    assert torch.allclose(quantizer.scale.grad, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_numbers_of_a_grid_are_its_quantizer_with_and_without_gradients(symmetric, dtype):
    quantizer = frozen(3, symmetric, False)
    numbers = Numbers.of(quantizer.scale, quantizer.zero_point, quantizer.grid)
    x = (3 * weights()).to(dtype)
    expected, seen = quantizer(x), []
    for fake_quantized in (numbers.fake_quantized, quantizer):
        leaf = x.clone().requires_grad_()
        assert torch.equal(fake_quantized(x), expected) and torch.equal(fake_quantized(leaf), expected)
        fake_quantized(leaf).sum().backward()
        seen.append(leaf.grad)
    assert torch.equal(*seen) and 0 < (seen[0] == 0).sum() < x.numel()
