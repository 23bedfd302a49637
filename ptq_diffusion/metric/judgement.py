"""Variants of one model judged together: images of the same noise, one feature space, one reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ptq_diffusion.metric.bootstrap import Paired, Track, paired_fid, paired_fid_to, paired_mean
from ptq_diffusion.metric.feature_network import FeatureExtractor
from ptq_diffusion.metric.psnr import psnr
from ptq_diffusion.metric.reference import Reference

FLOAT = "full_precision"
"""The variant that fidelity is measured to."""


@dataclass(frozen=True)
class Judgement:
    """What `judge` found.

    Args:
        rows: by variant, fid with its standard error fid_se, fid_to_fp and psnr_to_fp in dB (None for float).
        paired: for each metric and pair of variants the difference a - b with its 95 % interval.
        protocol: the feature space and the reference, without which the numbers mean nothing.
    """

    rows: Mapping[str, Mapping[str, float | None]]
    paired: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, str]


def judge(
    images: Mapping[str, Tensor],
    extractor: FeatureExtractor,
    reference: Reference,
    replicates: int,
    seed: int,
    track: Track = lambda items: items,
) -> Judgement:
    """FID to the reference, FID and PSNR to the float variant, with bootstrap errors.

    Without a reference, FID is measured against the float variant's own images.

    Args:
        images: by variant, (N, C, H, W) uint8, `FLOAT` among them; image i of each comes from the same noise.
        extractor: the feature space.
        reference: the real images.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        track: wraps the two long loops, to draw their progress.
    """
    features = {variant: extractor.features(batch) for variant, batch in images.items()}
    real = reference.moments(extractor)
    ratios = {variant: psnr(batch, images[FLOAT]) for variant, batch in images.items()}
    to_float = paired_fid_to(FLOAT, features, extractor.checksum(), replicates, seed, track)
    metrics = {
        "fid": to_float if real is None else paired_fid(features, real, replicates, seed, track),
        "fid_to_fp": to_float,
        "psnr_to_fp": paired_mean(ratios, replicates, seed),
    }
    protocol = {
        "metric": f"fid_{extractor.name}",
        "extractor_checksum": extractor.checksum(),
        "against": "the full-precision samples" if real is None else f"{real.count:,} real images",
        "reference_checksum": reference.checksum(),
    }
    return Judgement({variant: _row(metrics, variant) for variant in images}, _pairs(metrics), protocol)


def _row(metrics: Mapping[str, Paired], variant: str) -> Mapping[str, float | None]:
    found = {name: metric.estimates[variant] for name, metric in metrics.items()}
    return {
        "fid": found["fid"].value,
        "fid_se": found["fid"].standard_error,
        "fid_to_fp": found["fid_to_fp"].value,
        "psnr_to_fp": None if variant == FLOAT else found["psnr_to_fp"].value,
    }


def _pairs(metrics: Mapping[str, Paired]) -> Sequence[Mapping[str, Any]]:
    """Every pair of every metric, but no distance to float of the float variant, which is zero by definition."""
    return [
        {"a": a, "b": b, "metric": name, "difference": found.difference, "low": found.low, "high": found.high}
        for name, metric in metrics.items()
        for (a, b), found in metric.differences.items()
        if name == "fid" or FLOAT not in (a, b)
    ]
