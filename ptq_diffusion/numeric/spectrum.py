"""Images in the basis of the two-dimensional cosine transform, whose coefficients are grouped into bands."""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

RINGS = 16
"""Rings of frequencies that spectra of images are resolved in; `radial_bands` leaves out those that a size lacks."""
LEAST_VARIANCE = 1e-4
"""The least variance of a band relative to the mean of its channel: a coefficient that never varies has none."""


@cache
@torch.inference_mode(False)
def _basis(size: int) -> Tensor:
    """The orthonormal DCT-II matrix (size, size): row u is the cosine of frequency u."""
    u, i = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (i + 0.5) * u / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def cosine_transform(x: Tensor) -> Tensor:
    """The orthonormal DCT-II over the last two dimensions; a reflecting border makes convolutions products."""
    height, width = x.shape[-2:]
    return _basis(height).to(x) @ x @ _basis(width).to(x).T


def inverse_cosine_transform(x: Tensor) -> Tensor:
    """The inverse of `cosine_transform`."""
    height, width = x.shape[-2:]
    return _basis(height).to(x).T @ x @ _basis(width).to(x)


@cache
@torch.inference_mode(False)
def radial_bands(height: int, width: int, count: int) -> Tensor:
    """The band of every coefficient, (height, width) int64: 0 is the mean alone, the others are rings.

    The rings' radii grow geometrically from 1 to the corner, so that low frequencies, of which there are few, are
    resolved and high ones pooled. Rings that would hold no coefficient are left out: bands are 0, 1, 2, ... all filled.
    Radii are compared by whole numbers, so that no rounding decides where a coefficient belongs. What is cached here is
    made outside of inference mode, so that it can be used where gradients are asked for.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        count: the number of rings asked for, at least 1.
    """
    u, v = torch.arange(height)[:, None], torch.arange(width)[None]
    # Squared, in units in which rings are round on images that are not square; the radius 1 is the shorter side.
    radii, place = torch.unique((u * width) ** 2 + (v * height) ** 2, return_inverse=True)
    first = min(height, width) ** 2
    last = max(int(radii[-1]), first)
    # Edge i is first^(1 - i/count) last^(i/count), and is raised to the power of count.
    edges = [first ** (count - i) * last**i for i in range(1, count)]
    rings = torch.tensor([1 + bisect_left(edges, radius**count) for radius in radii.tolist()])
    rings[0] = 0
    return torch.unique(rings, return_inverse=True)[1][place]


@dataclass(frozen=True, eq=False)
class Whitening:
    """Division of every coefficient by its standard deviation over images, pooled over the band: W^(-1/2) x.

    A change dx of an image has the squared length |W^(-1/2) dx|^2, the squared Mahalanobis distance where coefficients
    are uncorrelated, which those of a stationary image nearly are. Channels are taken as uncorrelated too.

    Args:
        deviation: (C, H, W) float64, of every coefficient.
    """

    deviation: Tensor

    @classmethod
    def of(cls, images: Tensor) -> "Whitening":
        """The whitening of images, (N, C, H, W), about their mean image.

        Raises:
            ValueError: images do not vary, as a single one does not.
        """
        images = images.double().cpu()
        power = cosine_transform(images - images.mean(0)).square().mean(0)
        bands = radial_bands(*power.shape[-2:], RINGS).flatten()
        total = torch.zeros(len(power), int(bands.max()) + 1, dtype=torch.float64).index_add(1, bands, power.flatten(1))
        variance = (total / bands.bincount())[:, bands].view_as(power)
        least = LEAST_VARIANCE * variance.mean((1, 2), keepdim=True)
        if not (least > 0).all():
            raise ValueError(
                f"expected finite images that differ in every channel, got {len(images)} that do not; set "
                "sensitivity.distance=euclidean"
            )
        return cls(variance.maximum(least).sqrt())

    def __call__(self, x: Tensor) -> Tensor:
        """W^(-1/2) x of images x, (B, C, H, W)."""
        return inverse_cosine_transform(cosine_transform(x) / self.deviation.to(x))
