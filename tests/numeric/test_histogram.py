"""A histogram's counts depend on the values alone, and are exact integers."""

import pytest
import torch

from ptq_diffusion.numeric.histogram import TOGETHER, DyadicHistogram


def heavy_tailed(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=draw) * torch.randn(count, generator=draw).mul(3).exp()


STREAMS = {
    "heavy tails": heavy_tailed(3000),
    "ascending": heavy_tailed(1000).sort().values,
    "near a power of two": torch.tensor([0.999, 1.0, -1.0, 1.001, -2.0, 2.0, 3.999, 4.0]),
    "zeros first": torch.cat([torch.zeros(20), heavy_tailed(100)]),
    "only zeros": torch.zeros(7),
    "negative, then large": torch.cat([-heavy_tailed(50).abs() * 1e-9, heavy_tailed(50)]),
    "just below a bin's edge": torch.cat([torch.arange(-8.0, 8.0).nextafter(torch.tensor(-9.0)), torch.ones(3)]),
    "subnormal": torch.cat([torch.tensor([0.0, -1e-40, 3e-42, 1e-38]), heavy_tailed(5) * 1e-36]),
    "all magnitudes": torch.tensor([-1e-45, 1e-30, -1e-10, 1.0, -1e10, 3e38]),
}


def counted(values, split, bins=64):
    histogram = DyadicHistogram(bins)
    for part in values.split(split):
        histogram.add(part)
    return histogram


def same(a, b):
    return a.exponent == b.exponent and torch.equal(a.counts, b.counts) and (a.low, a.high) == (b.low, b.high)


@pytest.mark.parametrize("split", [1, 7, 50])
@pytest.mark.parametrize("values", STREAMS.values(), ids=STREAMS.keys())
def test_order_and_split_change_nothing(values, split):
    whole = counted(values, len(values))
    shuffled = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(split))]
    for stream in (values, values.flip(0), shuffled):
        assert same(counted(stream, split), whole)


@pytest.mark.parametrize("values", STREAMS.values(), ids=STREAMS.keys())
def test_counts_are_those_of_a_histogram_over_the_final_range(values):
    found = counted(values, 5)
    edges = torch.linspace(-1, 1, found.bins + 1, dtype=torch.float64) * 2.0**found.exponent
    exact = values.double()
    expected = torch.stack([((exact >= low) & (exact < high)).sum() for low, high in edges.unfold(0, 2, 1)])
    assert torch.equal(found.counts, expected)
    assert found.counts.sum() == values.numel()
    assert (found.low, found.high) == (values.min().item(), values.max().item())


def test_counts_equal_histc():
    values = torch.rand(5000, generator=torch.Generator().manual_seed(1)) * 1.9 - 0.95
    found = counted(values, 1000, bins=256)
    assert found.exponent == 0
    assert torch.equal(found.counts, torch.histc(values, 256, -1, 1).long())


def test_the_range_is_the_smallest_power_of_two_above_all():
    for largest, radius in [(0.75, 1), (1.0, 2), (-1.0, 2), (1.5, 2), (100.0, 128)]:
        found = counted(torch.tensor([largest, 0.1]), 2)
        assert 2.0**found.exponent == radius


def test_every_value_is_within_half_a_bin_of_its_centre():
    values = heavy_tailed(500)
    found = counted(values, 3, bins=4096)
    width = 2.0 ** (found.exponent + 1) / 4096
    nearest = (values[:, None] - found.centres()[None]).abs().amin(1)
    assert nearest.max() <= width / 2 * 1.0001
    assert torch.allclose(found.centres().diff(), torch.tensor(width))
    assert torch.equal(found.centres(), -found.centres().flip(0))


def test_shape_and_precision_of_the_input_do_not_matter():
    values = heavy_tailed(60).bfloat16()
    assert same(counted(values.view(3, 4, 5), 1), counted(values.double(), 60))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(bad):
    histogram = counted(torch.ones(3), 3)
    with pytest.raises(ValueError, match="check the network"):
        histogram.add(torch.tensor([1.0, bad, 2.0]))
    assert histogram.counts.sum() == 3


@pytest.mark.parametrize("bins", [0, 2, 100, -4])
def test_bins_must_be_a_power_of_two(bins):
    with pytest.raises(ValueError, match="power of two"):
        DyadicHistogram(bins)


def test_an_empty_histogram_has_no_bins():
    with pytest.raises(ValueError, match="seen no value"):
        DyadicHistogram(8).centres()


def test_more_values_than_are_counted_at_a_time_are_all_counted():
    values = heavy_tailed(2 * TOGETHER + 5)
    whole = counted(values, len(values))
    assert int(whole.counts.sum()) == len(values)
    assert same(whole, counted(values, 1000))
