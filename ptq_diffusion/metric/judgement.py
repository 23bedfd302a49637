"""Variants of one model judged together: images of the same noise, one feature space, one reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ptq_diffusion.metric.distance.classifier_score import paired_classifier_score
from ptq_diffusion.metric.distance.fid import paired_fid, paired_fid_to
from ptq_diffusion.metric.distance.kid import paired_kid, paired_kid_to
from ptq_diffusion.metric.distance.neighbours import NAMES, Neighbourhoods, neighbour_metrics
from ptq_diffusion.metric.distance.psnr import psnr
from ptq_diffusion.metric.distance.ssim import ssim
from ptq_diffusion.metric.distance_to_float import FLOAT
from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.metric.inference.bootstrap import Paired, Track, paired_mean, paired_parts
from ptq_diffusion.metric.protocol import FORMULAS, IMAGE_ROUTE, NOISE_PURPOSE, protocol_id
from ptq_diffusion.metric.real_statistics import RealStatistics
from ptq_diffusion.metric.reference import Reference

LIKENESS = ("psnr_to_fp", "ssim_to_fp")
"""Of an image to itself they say nothing: PSNR would be infinite."""


@dataclass(frozen=True)
class Settings:
    """How images are judged, `cfg.metric` and the seeds.

    Args:
        replicates: of the bootstrap.
        seed: of the bootstrap.
        neighbours: k of precision, recall, density and coverage.
        seeds: of the images, which follow each other, equally many of each.
    """

    replicates: int
    seed: int
    neighbours: int
    seeds: Sequence[int]

    @property
    def resampling(self) -> Mapping[str, int]:
        """The arguments that every paired metric takes."""
        return {"replicates": self.replicates, "seed": self.seed, "strata": len(self.seeds)}


@dataclass(frozen=True)
class Judgement:
    """What `judge` found.

    Args:
        rows: by variant, every metric and its standard error, named <metric>_se. None: the extractor has no spatial
            features or classes for it, or it is the float variant's likeness to itself.
        paired: for each metric and pair of variants the difference a - b with its 95 % interval, its standard error,
            the smallest difference that could be detected, and its spread over seeds (None for a single seed).
        protocol: what must agree before numbers may be compared, and `protocol_id` over it.
        features: by variant, to be paired with those of another run.
    """

    rows: Mapping[str, Mapping[str, float | None]]
    paired: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, Any]
    protocol_id: str
    features: Mapping[str, Features]


def judge(
    images: Mapping[str, Tensor],
    extractor: FeatureExtractor,
    reference: Reference,
    settings: Settings,
    track: Track = lambda items: items,
) -> Judgement:
    """Every metric to the reference and to the float variant, with bootstrap errors.

    Without a reference, metrics to the reference are measured against the float variant's own images.

    Args:
        images: by variant, (N, C, H, W) uint8, `FLOAT` among them; image i of each comes from the same noise.
        extractor: the feature space.
        reference: the real images.
        settings: of the metrics.
        track: wraps the long loops, to draw their progress.
    """
    features = {variant: extractor.extract(batch) for variant, batch in images.items()}
    real = reference.statistics(extractor)
    to_float = _to_float(images, features, extractor.checksum(), settings, track)
    metrics: dict[str, Paired | None] = {}
    for name in ("fid", "sfid", "kid", "classifier_score"):
        metrics[name] = _against(name, features, real, extractor.checksum(), settings, track)
    metrics |= _neighbours(features, real, settings) | to_float
    protocol = _protocol(extractor, reference, real, settings, len(images[FLOAT]))
    rows = {variant: _row(metrics, variant) for variant in images}
    return Judgement(rows, _pairs(metrics), protocol, protocol_id(protocol), features)


def _against(
    metric: str,
    features: Mapping[str, Features],
    real: RealStatistics | None,
    extractor: str,
    settings: Settings,
    track: Track,
) -> Paired | None:
    """One metric to the real images, or to the float variant where there are none."""
    how = settings.resampling
    vectors = {name: found.vectors for name, found in features.items()}
    spatial = {name: found.spatial for name, found in features.items() if found.spatial is not None}
    classes = {name: found.probabilities for name, found in features.items() if found.probabilities is not None}
    if metric == "classifier_score":
        return paired_classifier_score(classes, **how) if classes else None
    if metric == "kid":
        return paired_kid_to(FLOAT, vectors, **how) if real is None else paired_kid(vectors, real.vectors, **how)
    rows = vectors if metric == "fid" else spatial
    if not rows:
        return None
    if real is None:
        return paired_fid_to(FLOAT, rows, extractor, track=track, **how)
    moments = real.moments if metric == "fid" else real.spatial
    return None if moments is None else paired_fid(rows, moments, track=track, **how)


def _neighbours(features: Mapping[str, Features], real: RealStatistics | None, settings: Settings) -> dict[str, Paired]:
    """Precision, recall, density and coverage, of which the real images' balls are made once."""
    target = features[FLOAT].vectors if real is None else real.vectors
    balls = Neighbourhoods.of(target, settings.neighbours)
    found = {
        variant: neighbour_metrics(Neighbourhoods.of(one.vectors, settings.neighbours), balls)
        for variant, one in features.items()
    }
    return {
        name: paired_parts({variant: one[name] for variant, one in found.items()}, **settings.resampling)
        for name in NAMES
    }


def _to_float(
    images: Mapping[str, Tensor], features: Mapping[str, Features], extractor: str, settings: Settings, track: Track
) -> dict[str, Paired]:
    """The metrics to the float variant: of distributions, and of image i to the image of the same noise."""
    how = settings.resampling
    vectors = {variant: found.vectors for variant, found in features.items()}
    shifts = {variant: (rows - vectors[FLOAT]).norm(dim=1) for variant, rows in vectors.items()}
    ratios = {variant: psnr(batch, images[FLOAT]) for variant, batch in images.items()}
    similarities = {variant: ssim(batch, images[FLOAT]) for variant, batch in images.items()}
    return {
        "fid_to_fp": paired_fid_to(FLOAT, vectors, extractor, track=track, **how),
        "kid_to_fp": paired_kid_to(FLOAT, vectors, **how),
        "feature_distance_to_fp": paired_mean(shifts, **how),
        "psnr_to_fp": paired_mean(ratios, **how),
        "ssim_to_fp": paired_mean(similarities, **how),
    }


def _protocol(
    extractor: FeatureExtractor, reference: Reference, real: RealStatistics | None, settings: Settings, count: int
) -> Mapping[str, Any]:
    return {
        "metric": f"fid_{extractor.name}",
        "extractor_checksum": extractor.checksum(),
        "against": "the full-precision samples" if real is None else f"{real.moments.count:,} real images",
        "reference_checksum": reference.checksum(),
        "real_vectors": None if real is None else len(real.vectors),
        "image_route": IMAGE_ROUTE,
        "images": count // len(settings.seeds),
        "seeds": list(settings.seeds),
        "noise_purpose": NOISE_PURPOSE,
        "neighbours": settings.neighbours,
        "bootstrap": {"replicates": settings.replicates, "seed": settings.seed, "resampled": "images, within seeds"},
        "formulas": FORMULAS,
    }


def _row(metrics: Mapping[str, Paired | None], variant: str) -> Mapping[str, float | None]:
    row: dict[str, float | None] = {}
    for name, metric in metrics.items():
        itself = variant == FLOAT and name in LIKENESS
        found = None if metric is None or itself else metric.estimates[variant]
        row[name] = None if found is None else found.value
        row[f"{name}_se"] = None if found is None else found.standard_error
    return row


def _pairs(metrics: Mapping[str, Paired | None]) -> Sequence[Mapping[str, Any]]:
    """Every pair of every metric, but no distance to float of the float variant, which is zero by definition."""
    return [
        {
            "a": a,
            "b": b,
            "metric": name,
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "standard_error": found.standard_error,
            "detectable": found.detectable,
            "seed_spread": found.seed_spread,
        }
        for name, metric in metrics.items()
        if metric is not None
        for (a, b), found in metric.differences.items()
        if not name.endswith("_to_fp") or FLOAT not in (a, b)
    ]
