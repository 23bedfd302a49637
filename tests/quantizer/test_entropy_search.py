"""The entropy search loses the least information of all intervals, whatever it sees: values or their histogram."""

import pytest
import torch

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import EntropySearch, LpSearch, MinMax
from ptq_diffusion.quantizer.range_search import Distribution
from tests.quantizer.test_range_search import ROWS, every_grid, histogram_of

SEARCH = EntropySearch(bins=128, candidates=20)
SEEN = SEARCH.binned(Distribution.of_groups(ROWS))


@every_grid
def test_no_interval_loses_less(grid):
    lost = SEARCH.error(SEEN, *SEARCH(Distribution.of_groups(ROWS), grid), grid)
    assert (lost >= -1e-6).all()
    for factor in torch.linspace(1, 1 / 20, 20):
        assert (lost <= SEARCH.error(SEEN, SEEN.low * factor, SEEN.high * factor, grid)).all()
    if grid.bits <= 4:
        assert (lost < 0.9 * SEARCH.error(SEEN, *MinMax()(SEEN, grid), grid)).all()
        assert (lost <= SEARCH.error(SEEN, *LpSearch(2, 40)(SEEN, grid), grid) * 1.05).all()


@every_grid
def test_values_and_their_histogram_are_one(grid):
    """No bin of what was observed is cut in two, so that the interval is the same."""
    for row in ROWS:
        binned = [SEARCH.binned(seen) for seen in (Distribution.of_groups(row[None]), histogram_of(row, 8192))]
        assert torch.equal(binned[0].counts, binned[1].counts) and binned[0].counts.sum() == len(row)
        assert torch.equal(*(torch.stack(SEARCH(part, grid)) for part in binned))


def test_evenly_spread_values_are_not_clipped():
    even = Distribution.of_groups(torch.linspace(-1, 1, 4096)[None])
    for bits in (4, 8):
        low, high = SEARCH(even, Grid(bits, False))
        assert low < -0.9 and high > 0.9


def test_one_value_and_no_bins():
    for x in (torch.zeros(1, 5), torch.full((1, 5), 3.0)):
        low, high = SEARCH(Distribution.of_groups(x), Grid(4, False))
        assert low.isfinite().all() and (high <= x.max()).all()
    with pytest.raises(ValueError, match="expected bins >= 4, got 2"):
        EntropySearch(bins=2)
    with pytest.raises(ValueError, match="expected candidates >= 1"):
        EntropySearch(candidates=0)
