"""Fréchet distance of feature distributions, and the moments that it is a function of."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.metric.feature.feature import FeatureExtractor
from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.numeric.transport import squared_wasserstein, symmetric_root


@dataclass(frozen=True)
class FeatureMoments:
    """Count, mean and covariance of feature vectors, and whose features they are.

    Args:
        count: the number of images N.
        mean: (D,) float64.
        covariance: (D, D) float64, unbiased (divided by N - 1), as every FID implementation takes it.
        extractor: the checksum of the feature extractor.
    """

    count: int
    mean: Tensor
    covariance: Tensor
    extractor: str

    @classmethod
    def of(cls, features: Tensor, extractor: str) -> "FeatureMoments":
        """Moments of (N, D) features that the extractor of this checksum computed.

        Raises:
            ValueError: fewer than two images, or a feature is NaN or infinite.
        """
        return cls.of_batches([features], extractor)

    @classmethod
    def of_batches(cls, batches: Iterable[Tensor], extractor: str) -> "FeatureMoments":
        """Moments from any split of the features into batches (n, D), of which one is held at a time.

        Raises:
            ValueError: fewer than two images in all, or a feature is NaN or infinite.
        """
        total: Moments | None = None
        for batch in batches:
            part = Moments.of(batch.cpu())
            total = part if total is None else total.merge(part)
        if total is None or total.count < 2:
            count = 0 if total is None else total.count
            raise ValueError(f"expected at least 2 images for a covariance, got {count}; raise the number of images")
        return cls(total.count, total.mean, total.scatter / (total.count - 1), extractor)

    @classmethod
    def of_images(cls, images: Tensor, extractor: FeatureExtractor) -> "FeatureMoments":
        """Moments of the features of (N, C, H, W) images, uint8 or in [0, 1]."""
        return cls.of_batches((batch.vectors for batch in extractor.batches(images)), extractor.checksum())

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, (D, D), computed once."""
        return symmetric_root(self.covariance)

    def require(self, extractor: str) -> None:
        """Refuse moments of another feature space.

        Raises:
            ValueError: `extractor` is not the checksum of the extractor that these moments were taken with.
        """
        if extractor != self.extractor:
            raise ValueError(
                f"expected moments of the feature extractor {extractor}, got moments of {self.extractor}; "
                "take both with one extractor (goal=reference_statistics makes a reference, reference=none needs none)"
            )

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        metadata = {"count": json.dumps(self.count), "extractor": self.extractor}
        write_tensors(path, {"mean": self.mean, "covariance": self.covariance}, metadata)

    @classmethod
    def load(cls, path: Path) -> "FeatureMoments":
        """Moments that `save` wrote, alone or among the statistics of a reference.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else.
        """
        if not path.is_file():
            raise FileNotFoundError(f"expected feature moments at {path}; make them with goal=reference_statistics")
        try:
            with safe_open(path, "pt") as file:
                metadata, names = file.metadata() or {}, set(file.keys())
                if not {"count", "extractor"} <= set(metadata) or not {"mean", "covariance"} <= names:
                    raise ValueError(f"expected mean, covariance, count and extractor in {path}, got {sorted(names)}")
                mean, covariance = file.get_tensor("mean"), file.get_tensor("covariance")
        except SafetensorError as error:
            raise ValueError(
                f"expected feature moments in {path}, got no whole safetensors file ({error}); make them with "
                "goal=reference_statistics"
            ) from error
        count, width = metadata["count"], len(mean) if mean.ndim == 1 else 0
        if not (count.isdecimal() and width and covariance.shape == (width, width)):
            raise ValueError(
                f"expected a count, a mean (D,) and a covariance (D, D) in {path}, got {count!r:.50}, "
                f"{tuple(mean.shape)} and {tuple(covariance.shape)}; make them with goal=reference_statistics"
            )
        return cls(int(count), mean, covariance, metadata["extractor"])


def frechet_distance(samples: FeatureMoments, reference: FeatureMoments) -> float:
    """The `squared_wasserstein` distance of the two Gaussians with these moments.

    Of Inception features it is called FID (Heusel et al., NeurIPS 2017, arXiv 1706.08500). The distance of finite
    samples is biased upwards, by an amount that falls with the count: compare equal counts only.

    Args:
        samples: moments of the generated images.
        reference: moments that many samples are compared with; its root is computed once.

    Returns:
        The distance, in squared units of the features, not below 0.

    Raises:
        ValueError: the moments belong to different extractors.
    """
    samples.require(reference.extractor)
    return distance_to(samples.mean, samples.covariance, reference)


def distance_to(mean: Tensor, covariance: Tensor, reference: FeatureMoments) -> float:
    """`frechet_distance` of the moments (D,) and (D, D), float64, of features known to be of the same extractor."""
    shift = (mean - reference.mean).square().sum()
    return max(0.0, squared_wasserstein(shift, covariance, reference.covariance, reference.root).item())
