"""Transport between Gaussians: roots that square to their matrix, maps that arrive, distances that are exact."""

import pytest
import torch

from ptq_diffusion.numeric.transport import squared_wasserstein, symmetric_root, transport_map


def covariances(*shape, seed=0):
    rows = torch.randn(*shape[:-1], 2 * shape[-1], shape[-1], generator=torch.Generator().manual_seed(seed)).double()
    return rows.mT @ rows / rows.shape[-2]


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 1)])
def test_a_root_is_symmetric_and_squares_to_its_matrix(shape):
    matrix = covariances(*shape)
    root = symmetric_root(matrix)
    assert torch.allclose(root @ root, matrix) and torch.allclose(root, root.mT)


def test_what_rounding_makes_negative_counts_as_nothing():
    """In the root itself, and in the eigenvalues of a distance."""
    indefinite = torch.diag(torch.tensor([4.0, -1.0]).double())
    assert torch.equal(symmetric_root(indefinite), torch.diag(torch.tensor([2.0, 0.0]).double()))
    unit, zero = torch.eye(2).double(), torch.zeros(()).double()
    assert float(squared_wasserstein(zero, indefinite, unit, unit)) == 3 + 2 - 2 * 2


@pytest.mark.parametrize("shape", [(5,), (4, 3)])
def test_the_map_arrives_at_the_target_and_is_symmetric(shape):
    source, target = covariances(*shape), covariances(*shape, seed=1)
    found = transport_map(source, target)
    assert torch.allclose(found @ source @ found.mT, target) and torch.allclose(found, found.mT)


@pytest.mark.parametrize("seed", range(4))
def test_a_direction_without_variance_is_left_out(seed):
    """Also where rounding leaves it a little."""
    source = torch.diag(torch.tensor([4.0, 0.0]).double())
    assert torch.allclose(transport_map(source, torch.eye(2).double()), torch.diag(torch.tensor([0.5, 0.0]).double()))
    rows = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)).double()
    empty = torch.linalg.svd(rows)[0][:, 2]
    assert (transport_map(rows @ rows.T, torch.eye(3).double()) @ empty).norm() < 1e-6


@pytest.mark.parametrize("shape", [(5,), (4, 3)])
def test_the_distance_is_what_the_map_moves(shape):
    """E|A x - x|^2 over x of the source; nothing to itself, and the same from either side."""
    source, target = covariances(*shape), covariances(*shape, seed=1)
    shift = torch.full(shape[:-1], 0.3).double()
    move = transport_map(source, target) - torch.eye(shape[-1]).double()
    expected = shift + (move @ source @ move.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
    there = squared_wasserstein(shift, source, target, symmetric_root(target))
    back = squared_wasserstein(shift, target, source, symmetric_root(source))
    assert there.shape == shift.shape and torch.allclose(there, expected) and torch.allclose(there, back)
    assert torch.allclose(squared_wasserstein(0 * shift, source, source, symmetric_root(source)), 0 * shift, atol=1e-12)
