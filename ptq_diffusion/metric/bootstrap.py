"""How far a metric of finitely many images can be trusted, and the difference of two variants of the same noise.

Variants are paired: image i of each was sampled from the same seed and the same noise, so one resampling of the
indices serves them all, and what the images share cancels in a difference. Only the generated images are resampled;
a reference of real images is taken as given, one that is itself a variant is resampled with the others.

Intervals are *normal* bootstrap intervals: the difference +- 1.96 standard deviations of the resampled differences.
Percentile intervals are not used: a resampled set has fewer distinct images, which biases its FID upwards by about
as much again as the finite sample does, so the percentiles lie beside the value that they should surround (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ptq_diffusion.metric.frechet import FeatureMoments, distance_to, frechet_distance
from ptq_diffusion.numeric.seed import generator

QUANTILE = 1.96
Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Estimate:
    """A metric of one variant and its bootstrap standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Interval:
    """The difference of two variants, first minus second, and its 95 % normal bootstrap interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """A metric of several variants.

    Args:
        estimates: by variant.
        differences: by (first, second), for every pair in the order of the variants.
    """

    estimates: Mapping[str, Estimate]
    differences: Mapping[tuple[str, str], Interval]


def paired_fid(
    features: Mapping[str, Tensor],
    reference: FeatureMoments,
    replicates: int,
    seed: int,
    track: Track = lambda items: items,
) -> Paired:
    """The Fréchet distance of every variant to a reference, with errors.

    Args:
        features: by variant, (N, D); row i of every variant comes from the same noise.
        reference: moments of the features of real images, of the same extractor.
        replicates: the number of resampled sets, R.
        seed: of the resampling; equal seeds give equal results.
        track: wraps the loop over replicates, to draw its progress.

    Returns:
        Distances in squared units of the features.

    Raises:
        ValueError: the variants differ in shape or their D is not the reference's, N < 2 or R < 2.
    """
    _require_pairs(features, 2)
    width = len(reference.mean)
    found = {variant: tuple(rows.shape) for variant, rows in features.items()}
    if any(shape[1] != width for shape in found.values()):
        raise ValueError(f"expected (N, {width}) features as in the reference, got {found}")
    return _paired_distance(features, lambda _: reference, reference.extractor, replicates, seed, track)


def paired_fid_to(
    variant: str,
    features: Mapping[str, Tensor],
    extractor: str,
    replicates: int,
    seed: int,
    track: Track = lambda items: items,
) -> Paired:
    """The Fréchet distance of every variant to one of them, with errors.

    That one is resampled with the others: what it shares with them cancels, and its own distance is exactly 0 +- 0.

    Args:
        variant: the one that the others are compared with.
        features: by variant, (N, D); row i of every variant comes from the same noise.
        extractor: the checksum of the extractor.
        replicates: the number of resampled sets, R.
        seed: of the resampling.
        track: wraps the loop over replicates, to draw its progress.

    Returns:
        Distances in squared units of the features.

    Raises:
        ValueError: the variants differ in shape, N < 2 or R < 2.
    """
    _require_pairs(features, 2)
    rows = features[variant].double()

    def reference(weights: Tensor) -> FeatureMoments:
        mean, covariance = _weighted_moments(weights, rows - rows.mean(0))
        return FeatureMoments(len(rows), mean + rows.mean(0), covariance, extractor)

    return _paired_distance(features, reference, extractor, replicates, seed, track)


def _paired_distance(
    features: Mapping[str, Tensor],
    reference: Callable[[Tensor], FeatureMoments],
    extractor: str,
    replicates: int,
    seed: int,
    track: Track,
) -> Paired:
    """Distances to a reference that may itself depend on the resampling weights."""
    count = _count(features)
    whole = reference(torch.ones(count, dtype=torch.float64))
    values = {name: frechet_distance(FeatureMoments.of(rows, extractor), whole) for name, rows in features.items()}
    # centred once, so that weighted second moments lose no digits
    centres = {name: rows.double().mean(0) for name, rows in features.items()}
    centred = {name: rows.double() - centres[name] for name, rows in features.items()}

    def resampled(weights: Tensor) -> dict[str, float]:
        drawn = reference(weights)
        distances = {}
        for name, rows in centred.items():
            mean, covariance = _weighted_moments(weights, rows)
            distances[name] = distance_to(mean + centres[name], covariance, drawn)
        return distances

    return _paired(values, resampled, count, replicates, seed, track)


def paired_mean(metrics: Mapping[str, Tensor], replicates: int, seed: int) -> Paired:
    """The mean of a metric that every image has for itself, such as PSNR, with errors.

    Args:
        metrics: by variant, (N,); entry i of every variant comes from the same noise.
        replicates: the number of resampled sets, R.
        seed: of the resampling.

    Returns:
        Means and differences in the metric's unit.

    Raises:
        ValueError: the variants differ in shape, N < 2 or R < 2.
    """
    _require_pairs(metrics, 1)
    columns = {variant: metric.double() for variant, metric in metrics.items()}
    values = {variant: column.mean().item() for variant, column in columns.items()}
    count = _count(metrics)

    def resampled(weights: Tensor) -> dict[str, float]:
        return {variant: (weights @ column / count).item() for variant, column in columns.items()}

    return _paired(values, resampled, count, replicates, seed)


def paired_interval(first: Tensor, second: Tensor, replicates: int, seed: int) -> Interval:
    """The mean difference of two per-image metrics, (N,) each and paired by index: `paired_mean` of two variants."""
    return paired_mean({"first": first, "second": second}, replicates, seed).differences["first", "second"]


def resampling_weights(count: int, seed: int, replicate: int) -> Tensor:
    """How often each of `count` images is drawn when drawing `count` with replacement.

    Returns:
        (count,) float64 of whole numbers that add up to `count`, a function of (seed, replicate).
    """
    rows = torch.randint(count, (count,), generator=generator("bootstrap", seed, replicate))
    return torch.bincount(rows, minlength=count).double()


def _weighted_moments(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of rows (N, D) repeated by whole-number weights (N,)."""
    total = weights.sum()
    mean = weights @ rows / total
    scaled = rows * weights.sqrt()[:, None]
    return mean, (scaled.T @ scaled - total * torch.outer(mean, mean)) / (total - 1)


def _paired(
    values: dict[str, float],
    resampled: Callable[[Tensor], Mapping[str, float]],
    count: int,
    replicates: int,
    seed: int,
    track: Track = lambda items: items,
) -> Paired:
    if replicates < 2:
        raise ValueError(f"expected at least 2 bootstrap replicates, got {replicates}; raise metric.replicates")
    draws = [resampled(resampling_weights(count, seed, replicate)) for replicate in track(range(replicates))]
    columns = {variant: torch.tensor([draw[variant] for draw in draws], dtype=torch.float64) for variant in values}
    estimates = {variant: Estimate(value, columns[variant].std().item()) for variant, value in values.items()}
    differences = {}
    for first, second in combinations(values, 2):
        difference = values[first] - values[second]
        half = QUANTILE * (columns[first] - columns[second]).std().item()
        differences[first, second] = Interval(difference, difference - half, difference + half)
    return Paired(estimates, differences)


def _count(variants: Mapping[str, Tensor]) -> int:
    return len(next(iter(variants.values())))


def _require_pairs(variants: Mapping[str, Tensor], dimensions: int) -> None:
    shapes = {variant: tuple(rows.shape) for variant, rows in variants.items()}
    shape = next(iter(shapes.values()), ())
    if len(shape) != dimensions or shape[0] < 2 or len(set(shapes.values())) > 1:
        kind = "(N, D)" if dimensions == 2 else "(N,)"
        raise ValueError(f"expected variants of one shape {kind} with N >= 2, paired by noise, got {shapes}")
