"""Statistics of real images: moments of all their features, and the feature vectors of some."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.metric.distance.frechet import FeatureMoments
from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.numeric.seed import generator

STORED = 4096
"""Feature vectors that are stored. Kernels and neighbours need vectors, and few enough for all their distances."""


@dataclass(frozen=True)
class RealStatistics:
    """Features of real images, as far as metrics need them.

    Args:
        moments: of the feature vectors, for FID.
        spatial: of the spatial features, for sFID; None where the extractor has none.
        vectors: (M, D) float16, of `STORED` images or all if there are fewer, for KID and neighbours. Half precision is
            exact to 2^-11 of a feature, far below the distances of different images.
    """

    moments: FeatureMoments
    spatial: FeatureMoments | None
    vectors: Tensor

    @classmethod
    def of_images(cls, images: Tensor, extractor: FeatureExtractor) -> "RealStatistics":
        """Statistics of (N, C, H, W) images, uint8 or in [0, 1].

        Raises:
            ValueError: fewer than two images, or a feature is NaN or infinite.
        """
        return cls.of_batches(list(extractor.batches(images)), extractor.checksum())

    @classmethod
    def of_batches(cls, batches: Sequence[Features], extractor: str) -> "RealStatistics":
        """Statistics of features that come in batches, in the order of the images.

        Args:
            batches: of at least two images in all.
            extractor: the checksum of the extractor that computed them.

        Raises:
            ValueError: fewer than two images, or a feature is NaN or infinite.
        """
        features = Features.cat(batches)
        spatial = None if features.spatial is None else _moments((b.spatial for b in batches), extractor)
        moments = FeatureMoments.of_batches((batch.vectors for batch in batches), extractor)
        return cls(moments, spatial, features.vectors[stored_rows(len(features.vectors))].half())

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all, that `FeatureMoments.load` reads too."""
        tensors = {"mean": self.moments.mean, "covariance": self.moments.covariance, "vectors": self.vectors}
        if self.spatial is not None:
            tensors |= {"spatial_mean": self.spatial.mean, "spatial_covariance": self.spatial.covariance}
        write_tensors(path, tensors, {"count": str(self.moments.count), "extractor": self.moments.extractor})

    @classmethod
    def load(cls, path: Path) -> "RealStatistics":
        """Statistics that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else, such as moments alone.
        """
        moments = FeatureMoments.load(path)
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            if "vectors" not in names:
                raise ValueError(
                    f"expected feature vectors beside the moments in {path}, got {sorted(names)}; "
                    "make the statistics again with goal=reference_statistics"
                )
            spatial = None
            if "spatial_mean" in names:
                mean, covariance = file.get_tensor("spatial_mean"), file.get_tensor("spatial_covariance")
                spatial = FeatureMoments(moments.count, mean, covariance, moments.extractor)
            return cls(moments, spatial, file.get_tensor("vectors"))


def stored_rows(count: int) -> Tensor:
    """Indices of the images whose vectors are stored: the first `STORED` of one fixed permutation, ascending."""
    return torch.randperm(count, generator=generator("reference", count))[:STORED].sort().values


def _moments(batches: Iterable[Tensor | None], extractor: str) -> FeatureMoments:
    return FeatureMoments.of_batches((batch for batch in batches if batch is not None), extractor)
