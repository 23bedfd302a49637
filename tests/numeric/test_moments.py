"""Streaming moments equal two passes over everything, however the rows arrive."""

from functools import reduce

import pytest
import torch

from ptq_diffusion.numeric.moments import Moments

DRAW = torch.Generator().manual_seed(0)
# Columns of very different size, correlated, far from zero.
ROWS = torch.randn(600, 4, generator=DRAW).double() @ torch.randn(4, 4, generator=DRAW).double()
ROWS = ROWS * torch.tensor([1.0, 1e-3, 10.0, 1.0]).double() + torch.tensor([5.0, -2.0, 1000.0, 0.0]).double()


def two_pass(rows):
    centred = rows - rows.mean(0)
    return rows.mean(0), centred.T @ centred / len(rows)


def assert_equal_moments(a, b, rtol=1e-12):
    """Entries of a covariance are compared in units of the standard deviations that they belong to."""
    assert a.count == b.count
    stds = b.covariance.diagonal().sqrt()
    assert ((a.mean - b.mean).abs() <= rtol * (b.mean.abs() + stds)).all()
    assert ((a.covariance - b.covariance).abs() <= rtol * stds.outer(stds)).all()


def streamed(rows, split):
    return reduce(Moments.merge, (Moments.of(part) for part in rows.split(split)))


@pytest.mark.parametrize("split", [1, 2, 7, 100, 599, 600])
@pytest.mark.parametrize("order", ["given", "reversed", "shuffled", "sorted"])
def test_streaming_equals_two_passes(split, order):
    rows = {
        "given": ROWS,
        "reversed": ROWS.flip(0),
        "shuffled": ROWS[torch.randperm(len(ROWS), generator=torch.Generator().manual_seed(split))],
        "sorted": ROWS[ROWS[:, 0].argsort()],
    }[order]
    found = streamed(rows, split)
    mean, covariance = two_pass(ROWS)
    assert_equal_moments(found, Moments(len(ROWS), mean, covariance * len(ROWS)))


def test_merging_is_associative_and_commutative():
    a, b, c = (Moments.of(part) for part in ROWS.split([10, 390, 200]))
    assert_equal_moments(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_equal_moments(a.merge(b), b.merge(a))


def test_rows_are_summed_in_float64():
    rows = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1)) + 1e4
    found = streamed(rows, 100)
    assert found.mean.dtype == found.scatter.dtype == torch.float64
    mean, covariance = two_pass(rows.double())
    assert torch.allclose(found.covariance, covariance, rtol=1e-9)
    assert torch.allclose(found.mean, mean, rtol=1e-14)


def test_covariance_is_that_of_the_population():
    assert torch.allclose(Moments.of(ROWS).covariance, ROWS.T.cov(correction=0), rtol=1e-10)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="check the network"):
        Moments.of(torch.tensor([[1.0, 2.0], [bad, 3.0]]))


@pytest.mark.parametrize("order", [1, -1])
def test_no_rows_are_no_observations_and_merge_as_nothing(order):
    none, some = Moments.of(ROWS[:0]), Moments.of(ROWS)
    assert none.count == 0 and not none.mean.any() and not none.scatter.any()
    merged = reduce(Moments.merge, [none, some, none][::order])
    assert merged.count == len(ROWS)
    assert torch.equal(merged.mean, some.mean) and torch.equal(merged.scatter, some.scatter)
    assert none.merge(none).count == 0
