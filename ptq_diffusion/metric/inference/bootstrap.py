"""Bootstrap errors of metrics, and of their differences between variants of the same noise.

Variants are paired: image i of each was sampled from the same seed and the same noise, so one resampling of the
indices serves them all, and what the images share cancels in a difference. Only the generated images are resampled; a
reference of real images is taken as fixed. A variant that FID, sFID or KID is measured to is resampled with the others;
the balls of precision, recall, density and coverage are fixed, around a variant's images too.

Resampling is *stratified by seed*: as many images are drawn again from each seed's images as it has. Every image's
noise is a function of (seed, image) alone, so a seed is a label of equally many independent images and not a source
of variance; drawing seeds again would show nothing more, and three seeds have only ten different resamplings. What
would be seen if a seed did matter is reported beside: `seed_spread`, the standard deviation over seeds of the number
that each seed's images give alone, which for a mean is about sqrt(seeds) standard errors.

Intervals are *normal* bootstrap intervals: the difference +- 1.96 standard deviations of the resampled differences.
Percentile intervals are not used: a resampled set has fewer distinct images, which biases its FID upwards by about
as much again as the finite sample does, so the percentiles lie beside the value that they should surround (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Where copies of an image would do more harm, as pairs
at no distance in a kernel's mean or as missing images in coverage, the image's part in the metric is resampled instead,
and the spread over seeds is that of their images' mean parts: see `Parts`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ptq_diffusion.numeric.seed import generator

QUANTILE = 1.96
POWER_QUANTILE = 0.8416
"""Quantiles of the standard normal: 97.5 % lie below the first, 80 % below the second."""

Track = Callable[[Iterable[int]], Iterable[int]]
Statistic = Callable[[Tensor], Mapping[str, Tensor]]
"""A function from weights of the images, (B, N) float64, to a metric of each variant, (B,)."""


@dataclass(frozen=True)
class Estimate:
    """A metric of one variant, its bootstrap standard error, and its spread over seeds (None for a single seed)."""

    value: float
    standard_error: float
    seed_spread: float | None


@dataclass(frozen=True)
class Interval:
    """The difference of two variants, first minus second, with its 95 % normal bootstrap interval [low, high].

    Args:
        difference: first minus second.
        standard_error: of the difference.
        seed_spread: standard deviation of the difference over seeds; None for a single seed.
    """

    difference: float
    standard_error: float
    seed_spread: float | None

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.difference - QUANTILE * self.standard_error

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.difference + QUANTILE * self.standard_error

    @property
    def reversed(self) -> "Interval":
        """Second minus first; a zero has no sign of its own."""
        return Interval(0 - self.difference, self.standard_error, self.seed_spread)

    @property
    def detectable(self) -> float:
        """The smallest true difference that this sample size detects at the two-sided 5 % level with a power of 80 %.

        2.8 standard errors (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988).
        """
        return (QUANTILE + POWER_QUANTILE) * self.standard_error


@dataclass(frozen=True)
class Paired:
    """A metric of several variants.

    Args:
        estimates: by variant.
        differences: by (first, second), for every pair in the order of the variants.
    """

    estimates: Mapping[str, Estimate]
    differences: Mapping[tuple[str, str], Interval]


@dataclass(frozen=True)
class Parts:
    """A metric of a set of images and each image's part in it.

    Args:
        value: the metric theta of the set.
        parts: (N,) float64 jackknife pseudo-values N theta - (N - 1) theta without image i. The mean of these has the
            jackknife standard error of the metric, which is not too small on average (Efron and Stein, The Jackknife
            Estimate of Variance, Annals of Statistics 1981). The parts of a mean are its terms.
    """

    value: float
    parts: Tensor

    @classmethod
    def of_mean(cls, terms: Tensor) -> "Parts":
        """The parts of the mean of (N,) numbers: its terms."""
        return cls(terms.double().mean().item(), terms.double())


def paired_mean(metrics: Mapping[str, Tensor], replicates: int, seed: int, strata: int = 1) -> Paired:
    """The mean of a metric that every image has for itself, such as PSNR, with errors.

    Args:
        metrics: by variant, (N,); entry i of every variant comes from the same noise.
        replicates: the number of resampled sets, R.
        seed: of the resampling.
        strata: the number of seeds.

    Returns:
        Means and differences in the metric's unit.

    Raises:
        ValueError: the variants differ in shape, N < 2 or R < 2.
    """
    return paired_parts({name: Parts.of_mean(metric) for name, metric in metrics.items()}, replicates, seed, strata)


def paired_parts(metrics: Mapping[str, Parts], replicates: int, seed: int, strata: int = 1) -> Paired:
    """A metric in which every image has its part, with errors from resampling the parts; arguments as `paired_mean`."""
    columns = {name: metric.parts for name, metric in metrics.items()}
    require_pairs(columns, 1)

    def statistic(weights: Tensor) -> Mapping[str, Tensor]:
        return {name: weights @ column / weights.sum(1) for name, column in columns.items()}

    values = {name: metric.value for name, metric in metrics.items()}
    return resample(values, statistic, count_of(columns), replicates, seed, strata)


def resample(
    values: Mapping[str, float], statistic: Statistic, count: int, replicates: int, seed: int, strata: int
) -> Paired:
    """Errors of any metric that is a function of the images' weights.

    Args:
        values: of the variants.
        statistic: the same from weights, up to a constant.
        count: the number of images, N.
        replicates: the number of resampled sets, R.
        seed: of the resampling.
        strata: the number of seeds.

    Raises:
        ValueError: R < 2, or the seeds have not equally many images, at least 2.
    """
    if replicates < 2:
        raise ValueError(f"expected at least 2 bootstrap replicates, got {replicates}; raise judging.replicates")
    if count % strata or count < 2 * strata:
        raise ValueError(f"expected equally many images of {strata} seeds, at least 2 of each, got {count} in all")
    weights = torch.stack([resampling_weights(count, seed, replicate, strata) for replicate in range(replicates)])
    each_seed = torch.eye(strata, dtype=torch.float64).repeat_interleave(count // strata, 1)
    replicate_values = statistic(torch.cat([weights, each_seed]) if strata > 1 else weights)

    def spreads(column: Tensor) -> tuple[float, float | None]:
        return column[:replicates].std().item(), column[replicates:].std().item() if strata > 1 else None

    estimates = {name: Estimate(value, *spreads(replicate_values[name])) for name, value in values.items()}
    differences = {
        (a, b): Interval(values[a] - values[b], *spreads(replicate_values[a] - replicate_values[b]))
        for a, b in combinations(values, 2)
    }
    return Paired(estimates, differences)


def resampling_weights(count: int, seed: int, replicate: int, strata: int = 1) -> Tensor:
    """The number of times that each of `count` images is drawn with replacement, from each stratum as many as it has.

    Returns:
        (count,) float64 of whole numbers that add up to `count`, a function of (seed, replicate).
    """
    size = count // strata
    rows = torch.randint(size, (strata, size), generator=generator("bootstrap", seed, replicate))
    rows += size * torch.arange(strata)[:, None]
    return torch.bincount(rows.flatten(), minlength=count).double()


def count_of(variants: Mapping[str, Tensor]) -> int:
    """The number of images that the variants share."""
    return len(next(iter(variants.values())))


def require_pairs(variants: Mapping[str, Tensor], dimensions: int, least: int = 2) -> None:
    """Refuse variants that are not paired image by image.

    Raises:
        ValueError: they differ in shape, have not so many dimensions, or are fewer than `least` images.
    """
    shapes = {variant: tuple(rows.shape) for variant, rows in variants.items()}
    shape = next(iter(shapes.values()), ())
    if len(shape) != dimensions or shape[0] < least or len(set(shapes.values())) > 1:
        kind = "(N, D)" if dimensions == 2 else "(N,)"
        raise ValueError(f"expected variants of one shape {kind} with N >= {least}, paired by noise, got {shapes}")
