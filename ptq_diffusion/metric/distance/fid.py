"""FID, sFID and FID to float: Fréchet distances of variants of the same noise, with bootstrap errors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ptq_diffusion.metric.distance.frechet import FeatureMoments, frechet_distance
from ptq_diffusion.metric.distance.resampled import Distances, to_moments, to_variant
from ptq_diffusion.metric.inference.bootstrap import Paired, Track, count_of, require_pairs, resample
from ptq_diffusion.metric.metric import FLOAT, Evidence, Metric, Need


class FID(Metric):
    """The Fréchet distance of the feature vectors to those of the real images; less is better."""

    name = "fid"
    needs = ("vectors",)

    def paired(self, evidence: Evidence) -> Paired:
        return _to_reference(evidence, "vectors", None if evidence.real is None else evidence.real.moments)


class SpatialFID(Metric):
    """sFID, the same distance of spatial features (Nash et al., ICML 2021, arXiv 2103.03841); less is better."""

    name = "sfid"
    needs = ("spatial",)

    def paired(self, evidence: Evidence) -> Paired:
        return _to_reference(evidence, "spatial", None if evidence.real is None else evidence.real.spatial)


class FIDToFloat(Metric):
    """The Fréchet distance of the feature vectors to those of the float variant; less is better."""

    name = "fid_to_fp"
    needs = ("vectors",)
    to_float = True

    def paired(self, evidence: Evidence) -> Paired:
        return _to_reference(evidence, "vectors", None)


def paired_fid(
    features: Mapping[str, Tensor],
    reference: FeatureMoments,
    replicates: int,
    seed: int,
    track: Track = lambda items: items,
    strata: int = 1,
) -> Paired:
    """The Fréchet distance of every variant to a reference, with errors.

    Args:
        features: by variant, (N, D); row i of every variant comes from the same noise.
        reference: moments of the features of real images, of the same extractor.
        replicates: the number of resampled sets, R.
        seed: of the resampling; equal seeds give equal results.
        track: wraps the loop over replicates, to draw its progress.
        strata: the number of seeds, whose images follow each other, equally many of each.

    Returns:
        Distances in squared units of the features.

    Raises:
        ValueError: the variants differ in shape or their D is not the reference's, N < 2 or R < 2.
    """
    require_pairs(features, 2)
    width = len(reference.mean)
    shapes = {variant: tuple(rows.shape) for variant, rows in features.items()}
    if any(shape[1] != width for shape in shapes.values()):
        raise ValueError(f"expected (N, {width}) features as in the reference, got {shapes}")
    values, distances = _distances_to(reference, features), to_moments(features, reference)
    return _resampled(values, distances, count_of(features), replicates, seed, track, strata)


def paired_fid_to(
    variant: str,
    features: Mapping[str, Tensor],
    extractor: str,
    replicates: int,
    seed: int,
    track: Track = lambda items: items,
    strata: int = 1,
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
        strata: the number of seeds.

    Returns:
        Distances in squared units of the features.

    Raises:
        ValueError: the variants differ in shape, N < 2 or R < 2.
    """
    require_pairs(features, 2)
    moments, distances = FeatureMoments.of(features[variant], extractor), to_variant(features, variant, extractor)
    values = _distances_to(moments, features) | {variant: 0.0}
    return _resampled(values, distances, count_of(features), replicates, seed, track, strata)


def _to_reference(evidence: Evidence, need: Need, moments: FeatureMoments | None) -> Paired:
    """Distances to these moments, or to the float variant where there are none."""
    rows, track, resampling = evidence.rows(need), evidence.track, evidence.settings.resampling
    if moments is None:
        return paired_fid_to(FLOAT, rows, evidence.extractor, track=track, **resampling)
    return paired_fid(rows, moments, track=track, **resampling)


def _distances_to(reference: FeatureMoments, features: Mapping[str, Tensor]) -> dict[str, float]:
    extractor = reference.extractor
    return {name: frechet_distance(FeatureMoments.of(rows, extractor), reference) for name, rows in features.items()}


def _resampled(
    values: Mapping[str, float],
    distances: Distances,
    count: int,
    replicates: int,
    seed: int,
    track: Track,
    strata: int,
) -> Paired:
    """Distances of every variant, and those of resampled images from the function of their weights."""

    def statistic(weights: Tensor) -> Mapping[str, Tensor]:
        rows = [list(distances(weights[row])) for row in track(range(len(weights)))]
        return dict(zip(values, torch.tensor(rows, dtype=torch.float64).T, strict=True))

    return resample(values, statistic, count, replicates, seed, strata)
