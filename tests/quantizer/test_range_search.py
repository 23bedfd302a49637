"""The search that minimises an error has the least of it; the others are what their names say."""

import itertools

import pytest
import torch

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.numeric.histogram import DyadicHistogram
from ptq_diffusion.quantizer import AffineQuantizer, EntropySearch, LpSearch, MinMax, Percentile, PerChannel, PerTensor
from ptq_diffusion.quantizer.range_search import Distribution, affine_parameters

GRIDS = [Grid(bits, symmetric) for bits, symmetric in itertools.product(range(2, 9), (True, False))]
POWERS = [1.0, 2.0, 2.4, 4.0]
OTHERS = [MinMax(), Percentile(100), Percentile(99.99), Percentile(99.9), Percentile(99)]

every_grid = pytest.mark.parametrize("grid", GRIDS, ids=[f"{g.bits}{'s' if g.symmetric else 'a'}" for g in GRIDS])


def heavy_tailed(groups, count, seed=0):
    """Rows of different scale, the last two one-sided."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, count, generator=draw) * torch.randn(groups, count, generator=draw).exp()
    x *= torch.logspace(-2, 2, groups)[:, None]
    x[-1], x[-2] = x[-1].abs(), -x[-2].abs()
    return x


ROWS = heavy_tailed(6, 2000)


def error(x, low, high, grid, p):
    """The mean |x - x_hat|^p of each row, from the definition."""
    scale, zero_point = (part[:, None] for part in affine_parameters(low, high, grid))
    integers = ((x / scale).round() + zero_point).clamp(grid.low, grid.high)
    return ((integers - zero_point) * scale - x).abs().double().pow(p).mean(1)


@every_grid
@pytest.mark.parametrize("p", POWERS)
def test_the_least_error_is_the_least_of_all_searches(grid, p):
    """For every row, a tensor or a channel."""
    seen = Distribution.of_groups(ROWS)
    least = error(ROWS, *LpSearch(p, 80)(seen, grid), grid, p)
    assert (least <= error(ROWS, *MinMax()(seen, grid), grid, p)).all()
    for other in OTHERS:
        # A percentile may fall between two factors that are tried, which shows where clipping costs little: p = 1.
        assert (least <= error(ROWS, *other(seen, grid), grid, p) * (1 if p >= 2 else 1.05)).all()
    # Few bits gain much from clipping heavy tails; the search must find that.
    if grid.bits <= 4:
        assert (least < error(ROWS, *MinMax()(seen, grid), grid, p) * 0.95).all()


@every_grid
@pytest.mark.parametrize("p", POWERS)
def test_each_power_wins_under_its_own_error(grid, p):
    seen = Distribution.of_groups(ROWS)
    least = error(ROWS, *LpSearch(p, 80)(seen, grid), grid, p)
    for other in POWERS:
        # Two searches walk different ways through the factors, so an affine grid may miss the best by a little.
        assert (least <= error(ROWS, *LpSearch(other, 80)(seen, grid), grid, p) * 1.01).all()


@pytest.mark.parametrize("granularity", [PerChannel(), PerTensor()])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("p", POWERS)
def test_the_least_error_of_a_quantizer(p, bits, symmetric, granularity):
    """The same through quantizers, whose per-tensor form sees a histogram in place of values."""
    x = heavy_tailed(4, 4000, seed=1)

    def mean_error(search):
        quantizer = AffineQuantizer(bits, symmetric, granularity, search, 8192)
        quantizer.observe(x)
        quantizer.freeze()
        return (quantizer(x) - x).abs().double().pow(p).mean()

    least = mean_error(LpSearch(p, 80))
    for other in OTHERS:
        assert least <= mean_error(other) * (1 if p >= 2 else 1.05)


@every_grid
def test_more_candidates_do_no_harm(grid):
    """79 factors are every second of 157."""
    seen = Distribution.of_groups(ROWS[:, :200])
    if grid.symmetric:
        coarse, fine = (LpSearch(2, count) for count in (2, 4))  # 1, 1/2 against 1, 3/4, 1/2, 1/4
        assert (
            error(seen.values, *fine(seen, grid), grid, 2) <= error(seen.values, *coarse(seen, grid), grid, 2)
        ).all()
    alone = LpSearch(2, 1)(seen, grid)
    assert torch.equal(torch.stack(alone), torch.stack(MinMax()(seen, grid)))


@every_grid
def test_the_interval_lies_within_the_data(grid):
    seen = Distribution.of_groups(ROWS)
    for p in POWERS:
        low, high = LpSearch(p, 80)(seen, grid)
        assert (low >= torch.minimum(seen.low, torch.tensor(0.0))).all() and (low <= high).all()
        assert (high <= torch.maximum(seen.high, torch.tensor(0.0))).all()


def test_all_percent_is_min_max():
    """Of values and of histograms, whose outermost bins hold more than the extremes."""
    grid = Grid(4, False)
    for seen in [Distribution.of_groups(ROWS), *(histogram_of(row, 64) for row in ROWS)]:
        assert torch.equal(torch.stack(Percentile(100)(seen, grid)), torch.stack(MinMax()(seen, grid)))


@pytest.mark.parametrize("percentile", [60, 90, 99, 99.9])
def test_a_percentile_leaves_that_share_inside(percentile):
    x = heavy_tailed(4, 10000)
    low, high = Percentile(percentile)(Distribution.of_groups(x), Grid(4, False))
    tail = (100 - percentile) / 200
    assert torch.allclose((x < low[:, None]).double().mean(1), torch.tensor(tail).double(), atol=1.5e-4)
    assert torch.allclose((x > high[:, None]).double().mean(1), torch.tensor(tail).double(), atol=1.5e-4)


def test_percentiles_are_nested():
    seen = Distribution.of_groups(ROWS)
    intervals = [Percentile(percentile)(seen, Grid(4, False)) for percentile in (60, 90, 99, 99.9, 100)]
    for (low, high), (wider_low, wider_high) in itertools.pairwise(intervals):
        assert (wider_low <= low).all() and (high <= wider_high).all()


def histogram_of(values, bins):
    """What a per-tensor quantizer shows to its search."""
    histogram = DyadicHistogram(bins)
    histogram.add(values)
    low, high = torch.tensor([histogram.low]), torch.tensor([histogram.high])
    filled = histogram.counts > 0
    centres = histogram.centres()[filled].clamp(histogram.low, histogram.high)
    return Distribution(centres[None], histogram.counts[filled][None].float(), low, high)


@pytest.mark.parametrize(
    "search", [MinMax(), Percentile(99.9), LpSearch(2, 80), LpSearch(2.4, 80), EntropySearch(64, 40)]
)
@every_grid
def test_counting_a_value_twice_equals_showing_it_twice(grid, search):
    values = torch.tensor([[-3.0, -0.5, 0.1, 0.2, 4.0]])
    counts = torch.tensor([[1, 30, 500, 40, 2]])
    low, high = values.aminmax(dim=1)
    counted = Distribution(values, counts.float(), low, high)
    shown = Distribution.of_groups(values[0].repeat_interleave(counts[0])[None])
    assert torch.equal(torch.stack(search(counted, grid)), torch.stack(search(shown, grid)))


@every_grid
def test_parameters_cover_the_interval_and_hit_zero(grid):
    low = torch.tensor([-1.0, 0.5, -3.0, 0.0, -1e-3, -1e-45])
    high = torch.tensor([2.0, 4.0, -1.0, 0.0, 7e4, 1e-45])
    scale, zero_point = affine_parameters(low, high, grid)
    assert (scale > 0).all() and (zero_point >= grid.low).all() and (zero_point <= grid.high).all()
    lowest, highest = scale * (grid.low - zero_point), scale * (grid.high - zero_point)
    slack = scale * (1e-5 if grid.symmetric else 0.50001)
    assert (lowest <= low.clamp(max=0) + slack).all() and (highest >= high.clamp(min=0) - slack).all()
    assert scale[3] == scale[5] == 1


@every_grid
def test_the_zero_point_lies_on_the_grid_whatever_the_interval(grid):
    """One end much larger than the other, equal ends, one-sided intervals, and the smallest numbers of all."""
    ends = torch.cat([torch.zeros(1), torch.logspace(-45, 38, 400), torch.rand(400, generator=torch.Generator())])
    low, high = (side.flatten() for side in torch.meshgrid(-ends, ends, indexing="ij"))
    for lower, upper in ((low, high), (-high, -high / 3), (high / 3, high)):
        scale, zero_point = affine_parameters(lower, upper, grid)
        assert scale.isfinite().all() and (scale > 0).all()
        assert (zero_point >= grid.low).all() and (zero_point <= grid.high).all()


def test_a_percentile_that_falls_between_two_values_clips_both_tails_alike():
    """75 percent of eight values are the six in the middle; a value that ends exactly at the tail belongs to it."""
    values = torch.tensor([[-9.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 9.0]])
    for sign in (1, -1):
        low, high = Percentile(75)(Distribution.of_groups(sign * values), Grid(4, False))
        assert (low.item(), high.item()) == (-4, 4)


@pytest.mark.parametrize("percentile", [0, 50, 100.1, -1])
def test_percentiles_out_of_range_are_refused(percentile):
    with pytest.raises(ValueError, match="expected a percentile above 50"):
        Percentile(percentile)


@pytest.mark.parametrize(("p", "candidates", "message"), [(0, 80, "p > 0"), (-2, 80, "p > 0"), (2, 0, "candidates")])
def test_searches_without_meaning_are_refused(p, candidates, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        LpSearch(p, candidates)


@pytest.mark.parametrize("search", [LpSearch(2, 80), EntropySearch(64, 40)], ids=["mse", "entropy"])
@pytest.mark.parametrize(("groups", "values"), [(2, 5), (7, 33), (40, 300)])
def test_several_intervals_with_one_call_are_chosen_from_as_one_at_a_time(search, groups, values, monkeypatch):
    rows = torch.randn(groups, values, generator=torch.Generator().manual_seed(0))
    for grid in (Grid(4, True), Grid(4, False)):
        several = search(Distribution.of_groups(rows), grid)
        with monkeypatch.context() as patch:
            patch.setattr("ptq_diffusion.quantizer.range_search.AT_ONCE", 1)
            alone = search(Distribution.of_groups(rows), grid)
        assert all(map(torch.equal, several, alone))
