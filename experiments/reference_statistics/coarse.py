"""Rounds feature statistics so that they can be bundled, and says what is lost.

    python -m experiments.reference_statistics.coarse FILE OUT STEP

FILE is what goal=reference_statistics made, with the vectors of all images.
"""

import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from ptq_diffusion.metric.coarse_statistics import load_coarse, save_coarse
from ptq_diffusion.metric.distance.frechet import FeatureMoments, distance_to
from ptq_diffusion.metric.real_statistics import RealStatistics


def halves(vectors: Tensor) -> tuple[FeatureMoments, FeatureMoments]:
    """Moments of two disjoint random halves of feature vectors (N, D)."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))
    first, second = (FeatureMoments.of(vectors[part].float(), "") for part in order.chunk(2))
    return first, second


def main(source: str, target: str, step: str) -> None:
    """Writes the file, then distances of half the images, the other half and shrunk features, by both files."""
    say = Console(soft_wrap=True, highlight=False).print
    exact = RealStatistics.load(Path(source))
    save_coarse(exact, Path(target), float(step))
    coarse = load_coarse(Path(target))
    first, second = halves(exact.vectors)
    say(
        f"a half of {second.count} to a half of {first.count}: {distance_to(second.mean, second.covariance, first):.4g}"
    )
    for name, scale in {"a half": 1.0, "a half, features x 0.8": 0.8}.items():
        before, after = (
            distance_to(scale * first.mean, scale**2 * first.covariance, whole.moments) for whole in (exact, coarse)
        )
        say(f"{name} to all: {before:.5g}, by the coarse file {after:.5g}, {after / before - 1:+.1e} of it")


if __name__ == "__main__":
    main(*sys.argv[1:])
