"""Linear regression from streamed moments, its ridge chosen on observations that it was not fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.numeric.moments import Moments


@dataclass(frozen=True)
class LinearMap:
    """The map y = slope^T z + intercept.

    Args:
        slope: (I, O) float64.
        intercept: (O,) float64.
    """

    slope: Tensor
    intercept: Tensor


@dataclass(frozen=True)
class RidgeFit:
    """A regression and its error on observations that it was not fitted to.

    Args:
        map: fitted to all observations.
        strength: the ridge, relative to the variance of each input.
        r2: 1 - E|y - map(z)|^2 / E|y|^2, each half predicted from the other.
    """

    map: LinearMap
    strength: float
    r2: float


def ridge(moments: Moments, inputs: int, strength: float) -> LinearMap:
    """Least squares of the last dimensions on the first, shrunk towards 0.

    Inputs are scaled to unit variance, so the strength has no unit; an input that never varies takes no part.

    Args:
        moments: of (z, y), z first.
        inputs: the dimension I of z.
        strength: added to the diagonal of the correlation matrix of z; 0 is plain least squares.

    Raises:
        ValueError: the inputs are collinear and the strength does not cure it.
    """
    covariance = moments.covariance
    scale = covariance.diagonal()[:inputs].sqrt()
    scale = torch.where(scale > 0, scale, torch.inf)
    correlation = covariance[:inputs, :inputs] / scale[:, None] / scale
    correlation.diagonal().copy_(torch.where(torch.isfinite(scale), 1 + strength, 1.0))
    factor, failed = torch.linalg.cholesky_ex(correlation)
    if failed:
        raise ValueError(
            f"expected inputs that are not collinear, got a singular correlation matrix at ridge {strength:g}; "
            "raise the ridge or measure more images"
        )
    slope = torch.cholesky_solve(covariance[:inputs, inputs:] / scale[:, None], factor) / scale[:, None]
    return LinearMap(slope, moments.mean[inputs:] - moments.mean[:inputs] @ slope)


def mean_squared_error(linear_map: LinearMap, moments: Moments) -> float:
    """E|y - map(z)|^2, summed over the dimensions of y, of the observations (z, y) with these moments."""
    inputs = len(linear_map.slope)
    z, y, both = (
        moments.covariance[:inputs, :inputs],
        moments.covariance[inputs:, inputs:],
        moments.covariance[:inputs, inputs:],
    )
    residual = moments.mean[inputs:] - moments.mean[:inputs] @ linear_map.slope - linear_map.intercept
    explained = (linear_map.slope * (2 * both - z @ linear_map.slope)).sum()
    return max(float(y.trace() - explained + residual.square().sum()), 0.0)


def held_out_ridge(first: Moments, second: Moments, inputs: int, strengths: Sequence[float]) -> RidgeFit:
    """The ridge with the smallest error when each half is predicted from the other, fitted to both.

    Args:
        first: moments of (z, y) over one half of the images.
        second: over the other.
        inputs: the dimension of z.
        strengths: the candidates; collinear inputs rule out those that are too weak.

    Raises:
        ValueError: no candidate is strong enough.
    """
    zero = LinearMap(*_zeros(first, inputs))
    power = mean_squared_error(zero, first) + mean_squared_error(zero, second)
    best: tuple[float, float] | None = None
    for strength in strengths:
        try:
            error = mean_squared_error(ridge(first, inputs, strength), second)
            error += mean_squared_error(ridge(second, inputs, strength), first)
        except ValueError:
            continue
        if best is None or error < best[0]:
            best = error, strength
    if best is None:
        raise ValueError(
            f"expected a ridge that makes the regression well posed, got {list(strengths)}; add stronger ones"
        )
    error, strength = best
    return RidgeFit(ridge(first.merge(second), inputs, strength), strength, 1 - error / power if power > 0 else 1.0)


def _zeros(moments: Moments, inputs: int) -> tuple[Tensor, Tensor]:
    outputs = len(moments.mean) - inputs
    return torch.zeros(inputs, outputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
