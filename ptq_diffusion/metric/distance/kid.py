"""KID and KID to float: kernel distances of feature distributions, with bootstrap errors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ptq_diffusion.metric.inference.bootstrap import Paired, Parts, paired_parts, require_pairs
from ptq_diffusion.metric.metric import FLOAT, Evidence, Metric

CHUNK = 1024


class KID(Metric):
    """The kernel distance of the feature vectors to those of the real images; less is better."""

    name = "kid"
    needs = ("vectors",)

    def paired(self, evidence: Evidence) -> Paired:
        vectors, resampling = evidence.rows("vectors"), evidence.settings.resampling
        if evidence.real is None:
            return paired_kid_to(FLOAT, vectors, **resampling)
        return paired_kid(vectors, evidence.real.vectors, **resampling)


class KIDToFloat(Metric):
    """The kernel distance of the feature vectors to those of the float variant; less is better."""

    name = "kid_to_fp"
    needs = ("vectors",)
    to_float = True

    def paired(self, evidence: Evidence) -> Paired:
        return paired_kid_to(FLOAT, evidence.rows("vectors"), **evidence.settings.resampling)


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / D + 1)^3 of rows (N, D) and (M, D): (N, M)."""
    linear = x @ y.T / x.shape[1] + 1
    return linear * linear * linear


def paired_kid(features: Mapping[str, Tensor], real: Tensor, replicates: int, seed: int, strata: int = 1) -> Paired:
    """The squared maximum mean discrepancy of every variant to real images, with errors.

    mean_{i != j} k(s_i, s_j) + mean_{i != j} k(r_i, r_j) - 2 mean k(s_i, r_j) with the kernel of degree 3: the Kernel
    Inception Distance (Binkowski et al., ICLR 2018, arXiv 1801.01401) of other features, and of all images at once
    instead of the mean over random subsets, which has the same expectation and more variance. It is unbiased at any
    count, so that it may be below 0. Errors come from the parts that images have in it: the kernel is computed once.

    Args:
        features: by variant, (N, D); row i of every variant comes from the same noise.
        real: (M, D) of real images, of the same extractor.
        replicates: the number of resampled sets, R.
        seed: of the resampling.
        strata: the number of seeds.

    Raises:
        ValueError: the variants differ in shape or their D is not the real images', N < 3, M < 2 or R < 2.
    """
    require_pairs(features, 2, 3)
    width = next(iter(features.values())).shape[1]
    if real.ndim != 2 or len(real) < 2 or real.shape[1] != width:
        raise ValueError(f"expected real features (M >= 2, {width}), as those of the variants, got {tuple(real.shape)}")
    target = real.double()
    among_real = _among(target, target).sum() / (len(target) * (len(target) - 1))
    metrics = {}
    for name, rows in features.items():
        samples = rows.double()
        across = torch.cat([polynomial_kernel(part, target).mean(1) for part in samples.split(CHUNK)])
        metrics[name] = _parts(_among(samples, samples), among_real - 2 * across)
    return paired_parts(metrics, replicates, seed, strata)


def paired_kid_to(variant: str, features: Mapping[str, Tensor], replicates: int, seed: int, strata: int = 1) -> Paired:
    """The squared maximum mean discrepancy of every variant to one of them, with errors.

    Row i of both comes from the same noise and is no pair of independent images, so i = j is left out of every mean:
    mean_{i != j} k(s_i, s_j) + k(f_i, f_j) - 2 k(s_i, f_j) (Gretton et al., A Kernel Two-Sample Test, JMLR 2012,
    lemma 6). It is unbiased, and exactly 0 +- 0 for that variant itself.

    Args:
        variant: the one that the others are compared with.
        features: by variant, (N, D); row i of every variant comes from the same noise.
        replicates: the number of resampled sets, R.
        seed: of the resampling.
        strata: the number of seeds.

    Raises:
        ValueError: the variants differ in shape, N < 3 or R < 2.
    """
    require_pairs(features, 2, 3)
    target = features[variant].double()
    among_target = _among(target, target)
    metrics = {}
    for name, rows in features.items():
        samples = rows.double()
        crossed = _among(samples, target) + _among(target, samples)
        pairs = _among(samples, samples) + among_target - crossed
        metrics[name] = _parts(pairs, torch.zeros_like(pairs))
    return paired_parts(metrics, replicates, seed, strata)


def _among(x: Tensor, y: Tensor) -> Tensor:
    """sum_{j != i} k(x_i, y_j) of rows (N, D): (N,). A chunk at a time."""
    sums = []
    for rows in torch.arange(len(x)).split(CHUNK):
        kernel = polynomial_kernel(x[rows], y)
        kernel[torch.arange(len(rows)), rows] = 0
        sums.append(kernel.sum(1))
    return torch.cat(sums)


def _parts(pairs: Tensor, single: Tensor) -> Parts:
    """Jackknife parts of the mean over i != j of h_ij plus the mean over i of g_i, for symmetric h.

    Without image i, its row and its column are gone (Arvesen, Annals of Mathematical Statistics 1969).

    Args:
        pairs: sum_{j != i} h_ij, (N,) with N >= 3.
        single: g_i, (N,).
    """
    count, total, rest = len(pairs), pairs.sum(), single.sum()
    value = total / (count * (count - 1)) + rest / count
    without = (total - 2 * pairs) / ((count - 1) * (count - 2)) + (rest - single) / (count - 1)
    return Parts(value.item(), count * value - (count - 1) * without)
