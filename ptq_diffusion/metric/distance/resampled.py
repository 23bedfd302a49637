"""Fréchet distances of resampled images, by covariances of their features or by Gram matrices of the images.

A bootstrap takes the distance hundreds of times, each time of the same images with other weights w_i. Its expensive
part is the overlap, tr (R^1/2 S R^1/2)^1/2 of the covariances S of the samples and R of the reference. With rows
y_i = w_i^1/2 (x_i - mean), S = Y^T Y / (sum w - 1), and R^1/2 S R^1/2 has the non-zero eigenvalues of the (N, N) matrix
Y R Y^T / (sum w - 1), which is a Gram matrix of the unweighted images, weighted and centred. So the smaller of (D, D)
and (N, N) is decomposed: with 512 images of 1,280 features (N, N) is, of the images that were drawn at all, by far.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ptq_diffusion.metric.distance.frechet import FeatureMoments, distance_to
from ptq_diffusion.metric.inference.bootstrap import count_of

DRAWN = 1 - 1 / math.e
"""The share of the images that a resampling draws at least once, on average."""

Distances = Callable[[Tensor], Iterator[float]]
"""A function from weights of the images, (N,) float64, to the distances of the variants, in their order."""


def to_moments(features: Mapping[str, Tensor], reference: FeatureMoments) -> Distances:
    """Distances of resampled variants to moments that are not resampled.

    Args:
        features: by variant, (N, D).
        reference: of the same extractor.
    """
    if not _are_few(features):
        return _by_covariances(features, lambda _: reference)
    variants = {name: _Images(rows) for name, rows in features.items()}
    grams = {name: _product(images.centred @ reference.root) for name, images in variants.items()}
    total = reference.covariance.trace()

    def distances(weights: Tensor) -> Iterator[float]:
        for name, images in variants.items():
            mean, trace = images.moments(weights)
            shift = (mean - reference.mean).square().sum()
            yield _distance(shift, trace, total, _centred(grams[name], weights))

    return distances


def to_variant(features: Mapping[str, Tensor], variant: str, extractor: str) -> Distances:
    """Distances of resampled variants to one of them, which is resampled with the others.

    Args:
        features: by variant, (N, D).
        variant: the one that the others are compared with.
        extractor: the checksum of the extractor.
    """
    if not _are_few(features):
        return _by_covariances(features, _resampled_moments(features[variant], extractor), variant)
    variants = {name: _Images(rows) for name, rows in features.items()}
    products = {name: images.centred @ variants[variant].centred.T for name, images in variants.items()}

    def distances(weights: Tensor) -> Iterator[float]:
        target, total = variants[variant].moments(weights)
        for name, images in variants.items():
            if name == variant:
                yield 0.0  # and no residue of roundings
                continue
            mean, trace = images.moments(weights)
            # Y R Y^T with R = Z^T Z / (sum w - 1) of the target's rows Z
            overlap = _product(_centred(products[name], weights))
            yield _distance((mean - target).square().sum(), trace, total, overlap)

    return distances


class _Images:
    """Features of N images, centred once so that weighted moments lose no digits."""

    def __init__(self, rows: Tensor) -> None:
        self.centre = rows.double().mean(0)
        self.centred = rows.double() - self.centre
        self.squares = self.centred.square().sum(1)

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (D,) of images repeated by whole-number weights (N,), and the trace of their unbiased covariance."""
        total = weights.sum()
        offset = weights @ self.centred / total
        trace = (weights @ self.squares - total * offset.square().sum()) / (total - 1)
        return self.centre + offset, trace


def _are_few(features: Mapping[str, Tensor]) -> bool:
    """Whether the images that a resampling draws are fewer than the features of each."""
    width = next(iter(features.values())).shape[1]
    return DRAWN * count_of(features) < width


def _product(rows: Tensor) -> Tensor:
    return rows @ rows.T


def _centred(products: Tensor, weights: Tensor) -> Tensor:
    """Inner products of the rows w_i^1/2 (x_i - mean) from those of the x_i, (N, N), divided by sum w - 1.

    Images of no weight are left out.
    """
    drawn = weights.nonzero().flatten()
    kept, inner = weights[drawn], products[drawn][:, drawn]
    share = kept / kept.sum()
    left, right = share @ inner, inner @ share
    centred = inner - left - right[:, None] + share @ right
    root = kept.sqrt()
    return root[:, None] * centred * root / (kept.sum() - 1)


def _distance(shift: Tensor, trace: Tensor, reference: Tensor, overlap: Tensor) -> float:
    """`squared_wasserstein` from traces and a matrix that has the eigenvalues of R^1/2 S R^1/2."""
    roots = torch.linalg.eigvalsh(overlap).clamp(min=0).sqrt().sum()
    return max(0.0, (shift + trace + reference - 2 * roots).item())


def _by_covariances(
    features: Mapping[str, Tensor], reference: Callable[[Tensor], FeatureMoments], itself: str | None = None
) -> Distances:
    """Distances to moments that may depend on the weights, 0 of the variant whose own they are, if any."""
    variants = {name: _Images(rows) for name, rows in features.items()}

    def distances(weights: Tensor) -> Iterator[float]:
        target = reference(weights)
        for name, images in variants.items():
            if name == itself:
                yield 0.0
                continue
            mean, covariance = _weighted_moments(weights, images.centred)
            yield distance_to(mean + images.centre, covariance, target)

    return distances


def _resampled_moments(rows: Tensor, extractor: str) -> Callable[[Tensor], FeatureMoments]:
    images = _Images(rows)

    def moments(weights: Tensor) -> FeatureMoments:
        mean, covariance = _weighted_moments(weights, images.centred)
        return FeatureMoments(len(rows), mean + images.centre, covariance, extractor)

    return moments


def _weighted_moments(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of rows (N, D) repeated by whole-number weights (N,)."""
    total = weights.sum()
    mean = weights @ rows / total
    scaled = rows * weights.sqrt()[:, None]
    return mean, (scaled.T @ scaled - total * torch.outer(mean, mean)) / (total - 1)
