"""The affine quantizer equals torch's own operators and observers, and granularity only helps."""

import itertools

import pytest
import torch

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import (
    AffineQuantizer,
    LpSearch,
    MinMax,
    Numbers,
    Percentile,
    PerChannel,
    PerGroup,
    PerTensor,
)

MSE = LpSearch(p=2, candidates=80)


def weights(seed=0):
    """Heavy-tailed, each channel with its own scale and offset."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 6, 3, 3, generator=draw) * torch.randn(8, 6, 3, 3, generator=draw).exp()
    return x * torch.logspace(-3, 1, 8).view(8, 1, 1, 1) + torch.randn(8, 1, 1, 1, generator=draw) * 0.1


def frozen(bits, symmetric, granularity, search=MSE, x=None, bins=8192):
    quantizer = AffineQuantizer(bits, symmetric, granularity, search, bins)
    quantizer.observe(weights() if x is None else x)
    quantizer.freeze()
    return quantizer


GRANULARITIES = [PerTensor(), PerChannel(), PerChannel(axis=1), PerGroup(4)]
every = pytest.mark.parametrize(
    ("bits", "symmetric", "granularity"), list(itertools.product(range(2, 9), (True, False), GRANULARITIES))
)


@every
def test_equals_the_fake_quantization_of_torch_bit_for_bit(bits, symmetric, granularity):
    quantizer = frozen(bits, symmetric, granularity)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    # Ties, and what rounding in float32 could turn into ties.
    scale, zero_point = (quantizer.granularity.spread(p, (8, 6, 3, 3)) for p in (quantizer.scale, quantizer.zero_point))
    ties = (scale * (torch.arange(-27, 27).view(1, 6, 3, 3) + 0.5)).expand(8, 6, 3, 3)
    # torch has operators for a whole tensor and for slices along an axis; every number is a slice of its own here.
    own = [parameter.expand(8, 6, 3, 3).flatten() for parameter in (scale, zero_point)]
    for x in (weights(), 5 * weights(1), ties, ties.nextafter(torch.tensor(9.0))):
        by_number = torch.fake_quantize_per_channel_affine(x.reshape(-1, 1), *own, 0, low, high).view(x.shape)
        if granularity == PerTensor():
            expected = torch.fake_quantize_per_tensor_affine(x, scale.item(), zero_point.item(), low, high)
        elif isinstance(granularity, PerChannel):
            slices = quantizer.scale.flatten(), quantizer.zero_point.flatten(), granularity.axis
            expected = torch.fake_quantize_per_channel_affine(x, *slices, low, high)
        else:
            expected = by_number
        assert torch.equal(expected, by_number)
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
    whole, channels, columns = MinMaxObserver(**options), *(PerChannelMinMaxObserver(a, **options) for a in (0, 1))
    for granularity, observer in ((PerTensor(), whole), (PerChannel(), channels), (PerChannel(axis=1), columns)):
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        quantizer = frozen(bits, False, granularity, MinMax(), x)
        assert torch.equal(quantizer.scale.flatten(), scale)
        assert torch.equal(quantizer.zero_point.flatten(), zero_point.int())


@every
def test_min_max_clips_nothing(bits, symmetric, granularity):
    quantizer = frozen(bits, symmetric, granularity, MinMax())
    x = weights()
    half = granularity.spread(quantizer.scale, x.shape) / 2
    # An affine grid's ends shift by up to half a step, when its zero point is rounded.
    assert ((quantizer(x) - x).abs() <= half * (1.001 if symmetric else 2.001)).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_finer_granularity_has_a_smaller_error(bits, symmetric):
    x = weights()
    divisions = PerTensor(), PerChannel(), PerGroup(3), PerGroup(1)
    errors = [(frozen(bits, symmetric, granularity)(x) - x).square().mean() for granularity in divisions]
    assert all(finer < coarser for coarser, finer in itertools.pairwise(errors))


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_zero_point_has_no_larger_error_on_one_sided_data(bits):
    x = weights().abs()
    free, fixed = ((frozen(bits, symmetric, PerChannel(), x=x)(x) - x).square() for symmetric in (False, True))
    assert (free.mean((1, 2, 3)) <= fixed.mean((1, 2, 3))).all()


@every
def test_one_channel_is_a_tensor(bits, symmetric, granularity):
    """A channel's grid depends on that channel only."""
    x = weights()
    if granularity == PerTensor():
        parts = AffineQuantizer(bits, symmetric, granularity, MSE, 8192)
        for part in x.flip(0).split(1):
            parts.observe(part)
        parts.freeze()
        assert torch.equal(parts(x), frozen(bits, symmetric, granularity)(x))
        return
    axis = getattr(granularity, "axis", 0)
    alone = frozen(bits, symmetric, granularity, x=x.narrow(axis, 3, 1))
    expected = frozen(bits, symmetric, granularity)(x).narrow(axis, 3, 1)
    assert torch.equal(alone(x.narrow(axis, 3, 1)), expected)


def test_a_bin_stands_for_no_value_beyond_those_seen():
    """The centre of the bin of -0.3 is -0.25 here, above everything that was seen."""
    x = torch.tensor([-0.9] + 1000 * [-0.3])
    quantizer = frozen(8, False, PerTensor(), Percentile(99), x, bins=4)
    assert torch.allclose(quantizer(x[1:]), x[1:])


def test_a_second_weight_is_refused():
    quantizer = AffineQuantizer(4, True, PerChannel(), MSE, 8192)
    quantizer.observe(weights())
    with pytest.raises(RuntimeError, match="this is its second"):
        quantizer.observe(weights())


@every
def test_scale_and_zero_point_are_safe_to_store(bits, symmetric, granularity):
    quantizer = frozen(bits, symmetric, granularity)
    shape = {PerTensor(): (1,), PerChannel(): (8,), PerChannel(axis=1): (1, 6), PerGroup(4): (8, 2)}[granularity]
    assert quantizer.scale.shape == quantizer.zero_point.shape == shape
    assert quantizer.scale.dtype == torch.float32 and quantizer.zero_point.dtype == torch.int32
    assert (quantizer.scale > 0).all() and quantizer.scale.isfinite().all()
    if symmetric:
        assert not quantizer.zero_point.any()
    assert list(dict(quantizer.named_buffers())) == ["scale", "zero_point"]
    assert list(quantizer.parameters()) == []


@every
def test_a_tensor_of_zeros_is_kept(bits, symmetric, granularity):
    zeros = torch.zeros(3, 4)
    assert torch.equal(frozen(bits, symmetric, granularity, x=zeros)(zeros), zeros)


@pytest.mark.parametrize("bits", [1, 9, 32])
def test_other_bitwidths_are_refused(bits):
    with pytest.raises(ValueError, match="expected 2 to 8 bits"):
        AffineQuantizer(bits, True, PerTensor(), MSE, 8192)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes(symmetric, granularity):
    """round(x / s) - x / s on the grid; the grid's end, measured from zero, beyond."""
    quantizer = frozen(3, symmetric, granularity, MinMax())
    quantizer.scale.requires_grad_()
    x = 2 * weights()
    quantizer(x).sum().backward()
    parameters = quantizer.scale.detach(), quantizer.zero_point
    scale, zero_point = (granularity.spread(parameter, x.shape) for parameter in parameters)
    position, low, high = x / scale, quantizer.grid.low - zero_point, quantizer.grid.high - zero_point
    rounded = position.round()
    inside = (rounded >= low) & (rounded <= high)
    slope = torch.where(inside, rounded - position, rounded.clamp(low, high))
    slopes, counts = granularity.rows(slope)
    assert torch.allclose(quantizer.scale.grad.flatten(), (slopes * counts).sum(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_numbers_of_a_grid_are_its_quantizer_with_and_without_gradients(symmetric, dtype):
    quantizer = frozen(3, symmetric, PerTensor())
    numbers = Numbers.of(quantizer.scale, quantizer.zero_point, quantizer.grid)
    x = (3 * weights()).to(dtype)
    expected, seen = quantizer(x), []
    for fake_quantized in (numbers.fake_quantized, quantizer):
        leaf = x.clone().requires_grad_()
        assert torch.equal(fake_quantized(x), expected) and torch.equal(fake_quantized(leaf), expected)
        fake_quantized(leaf).sum().backward()
        seen.append(leaf.grad)
    assert torch.equal(*seen) and 0 < (seen[0] == 0).sum() < x.numel()
