"""Judges variants of one model together: images of the same noise, one feature space, one reference, any metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.metric.gathering import Gathering
from ptq_diffusion.metric.inference.bootstrap import Paired, Track
from ptq_diffusion.metric.metric import FLOAT, Evidence, Likeness, Metric, Settings
from ptq_diffusion.metric.protocol import FORMULAS, FORMULAS_TO_FLOAT, IMAGE_ROUTE, NOISE_PURPOSE, protocol_id
from ptq_diffusion.metric.real_statistics import RealStatistics

Results = Sequence[tuple[Metric, Paired | None]]
"""Every metric with its numbers; None where the extractor or the reference lacks what it needs."""


@dataclass(frozen=True)
class Judgement:
    """The result of `judge`.

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
    gathering: Gathering,
    real: RealStatistics | None,
    reference: str,
    settings: Settings,
    track: Track = lambda items: items,
) -> Judgement:
    """Every metric of every variant and of every pair of variants, with bootstrap errors.

    Without a reference, metrics to the reference are measured against the float variant's own images.

    Args:
        gathering: of all images, `FLOAT` among the variants; it has the extractor and the metrics, none of which has an
            influence on the numbers of another.
        real: statistics of the real images in the extractor's space, or None.
        reference: the checksum of where they come from.
        settings: shared by the metrics.
        track: wraps the long loops, to draw their progress.
    """
    extractor, features = gathering.extractor, gathering.features()
    evidence = Evidence(features, gathering.scores(), real, extractor.checksum(), settings, track)
    results = [
        (metric, metric.paired(evidence) if _possible(metric, evidence) else None) for metric in gathering.metrics
    ]
    protocol = _protocol(extractor, reference, real, settings, len(features[FLOAT].vectors))
    if read := {one.name: checksum for one in gathering.metrics if (checksum := one.checksum()) is not None}:
        protocol = {**protocol, "files_of_metrics": read}
    rows = {variant: _row(results, variant) for variant in features}
    return Judgement(rows, _pairs(results), protocol, protocol_id(protocol), features)


def _possible(metric: Metric, evidence: Evidence) -> bool:
    return all(evidence.has(need) for need in metric.needs)


def _protocol(
    extractor: FeatureExtractor, reference: str, real: RealStatistics | None, settings: Settings, count: int
) -> Mapping[str, Any]:
    return {
        "metric": f"fid_{extractor.name}",
        "extractor_checksum": extractor.checksum(),
        "against": "the full-precision samples" if real is None else f"{real.moments.count:,} real images",
        "reference_checksum": reference,
        "real_vectors": None if real is None else len(real.vectors),
        "image_route": IMAGE_ROUTE,
        "images": count // len(settings.seeds),
        "seeds": list(settings.seeds),
        "noise_purpose": NOISE_PURPOSE,
        "neighbours": settings.neighbours,
        "bootstrap": {"replicates": settings.replicates, "seed": settings.seed, "resampled": "images, within seeds"},
        "formulas": FORMULAS_TO_FLOAT if real is None else FORMULAS,
    }


def _row(results: Results, variant: str) -> Mapping[str, float | None]:
    row: dict[str, float | None] = {}
    for metric, paired in results:
        itself = variant == FLOAT and isinstance(metric, Likeness)
        estimate = None if paired is None or itself else paired.estimates[variant]
        row[metric.name] = None if estimate is None else estimate.value
        row[f"{metric.name}_se"] = None if estimate is None else estimate.standard_error
    return row


def _pairs(results: Results) -> Sequence[Mapping[str, Any]]:
    """Every pair of every metric, but no distance to float of the float variant, which is zero by definition."""
    return [
        {
            "a": a,
            "b": b,
            "metric": metric.name,
            "difference": interval.difference,
            "low": interval.low,
            "high": interval.high,
            "standard_error": interval.standard_error,
            "detectable": interval.detectable,
            "seed_spread": interval.seed_spread,
        }
        for metric, paired in results
        if paired is not None
        for (a, b), interval in paired.differences.items()
        if not metric.to_float or FLOAT not in (a, b)
    ]
