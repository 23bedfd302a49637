"""Optimal transport between Gaussians: roots of covariances, the map, and the Wasserstein distance."""

import torch
from torch import Tensor


def symmetric_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of covariances, (..., D, D), of which the lower triangle is read.

    Eigenvalues that rounding makes negative count as 0.
    """
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT


def transport_map(source: Tensor, target: Tensor) -> Tensor:
    """A = S^-1/2 (S^1/2 T S^1/2)^1/2 S^-1/2, the optimal transport from N(0, S) to N(0, T), (..., D, D).

    Dowson and Landau, 1982. Directions in which a singular S has no variance are mapped to 0.

    Args:
        source: S, (..., D, D).
        target: T, (..., D, D).
    """
    # Of S, not of its root: the root of an eigenvalue that rounding leaves, 1e-17, would be large enough to invert.
    root, inverse = symmetric_root(source), symmetric_root(torch.linalg.pinv(source, hermitian=True))
    return inverse @ symmetric_root(root @ target @ root) @ inverse


def squared_wasserstein(shift: Tensor, covariance: Tensor, reference: Tensor, root: Tensor) -> Tensor:
    """|mu - mu_r|^2 + tr S + tr S_r - 2 tr (S_r^1/2 S S_r^1/2)^1/2, the squared 2-Wasserstein distance, (...).

    Between Gaussians: Dowson and Landau, 1982. The matrix under the last root is symmetric, so its trace is a sum of
    square roots of real eigenvalues; those that rounding makes negative count as 0. Rounding may leave a distance just
    below 0.

    Args:
        shift: |mu - mu_r|^2, (...).
        covariance: S, (..., D, D).
        reference: S_r, (..., D, D).
        root: S_r^1/2, the `symmetric_root` of the reference.
    """
    overlap = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum(-1)
    return shift + _trace(covariance) + _trace(reference) - 2 * overlap


def _trace(matrices: Tensor) -> Tensor:
    """The trace of every matrix, (...), in the order of `torch.trace`: a sum over the diagonal rounds otherwise."""
    rows = matrices.reshape(-1, *matrices.shape[-2:])
    return torch.stack([matrix.trace() for matrix in rows]).reshape(matrices.shape[:-2])
