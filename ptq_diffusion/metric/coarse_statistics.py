"""Statistics of real images in a tenth of the bytes: rounded vectors of all images, from which the covariance comes."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.metric.distance.frechet import FeatureMoments
from ptq_diffusion.metric.real_statistics import RealStatistics

LEVELS = 256
"""How many multiples of the step one byte holds, from 0 on."""


def save_coarse(statistics: RealStatistics, path: Path, step: float) -> None:
    """Write a safetensors file of the vectors, rounded to multiples of a step, beside their exact means and variances.

    Rounding adds its own variance to that of each feature and next to nothing to covariances of two, so that the exact
    variances take it out again. Features lie feature by feature, which compresses best. Spatial features are left out.

    Args:
        statistics: with the vectors of all images, none below 0.
        path: of the file, which is written whole or not at all.
        step: of the rounding, in units of the features.

    Raises:
        ValueError: vectors of some images are missing, or one is out of what a byte holds.
    """
    vectors, count = statistics.vectors.double(), statistics.moments.count
    levels = (vectors / step).round()
    if len(vectors) != count or not (levels.min() >= 0 and levels.max() < LEVELS):
        raise ValueError(
            f"expected vectors of all {count} images, between 0 and {(LEVELS - 1) * step:g}, got {len(vectors)} "
            f"between {vectors.min():g} and {vectors.max():g}; take no more images than are stored, and a larger step"
        )
    tensors = {
        "levels": levels.T.contiguous().to(torch.uint8),
        "mean": statistics.moments.mean,
        "variance": statistics.moments.covariance.diagonal().contiguous(),
    }
    write_tensors(path, tensors, {"step": repr(step), "extractor": statistics.moments.extractor})


def is_coarse(path: Path) -> bool:
    """Whether `save_coarse` wrote this safetensors file."""
    with safe_open(path, "pt") as file:
        return "levels" in file.keys()  # noqa: SIM118 - it is no dictionary


def load_coarse(path: Path) -> RealStatistics:
    """Statistics that `save_coarse` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    with safe_open(path, "pt") as file:
        metadata, names = file.metadata() or {}, set(file.keys())
        if names != {"levels", "mean", "variance"} or not {"step", "extractor"} <= set(metadata):
            raise ValueError(
                f"expected levels, mean and variance with a step and an extractor in {path}, got {sorted(names)}; "
                "fetch the file again"
            )
        levels, mean, variance = (file.get_tensor(name) for name in ("levels", "mean", "variance"))
    vectors = levels.T.float() * float(metadata["step"])
    moments = FeatureMoments(len(vectors), mean, _covariance(vectors.double(), variance), metadata["extractor"])
    return RealStatistics(moments, None, vectors.half())


def _covariance(vectors: Tensor, variance: Tensor) -> Tensor:
    """The covariance (D, D) of rounded vectors (N, D), whose diagonal is the variance (D,) before the rounding."""
    covariance = torch.cov(vectors.T)
    covariance.diagonal().copy_(variance)
    return covariance
