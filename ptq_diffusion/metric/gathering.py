"""Features and scores of images that are seen batch by batch, as far as metrics read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.metric.metric import FLOAT, ImageMetric, Metric, PromptMetric, ScoreMetric

FEATURES, SCORES = "features", "scores"
"""The first parts of the names of tensors of a batch."""


@dataclass(frozen=True)
class Described:
    """A batch of images as far as metrics read it, on the CPU.

    Args:
        features: of the images, by variant.
        scores: of every image, (N,) float64, by the name of a metric and by variant.
    """

    features: Mapping[str, Features]
    scores: Mapping[str, Mapping[str, Tensor]]

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by features/VARIANT/KIND and scores/VARIANT/METRIC, to be kept as safetensors."""
        tensors = {f"{SCORES}/{variant}/{name}": x for name, rows in self.scores.items() for variant, x in rows.items()}
        for variant, features in self.features.items():
            tensors |= {f"{FEATURES}/{variant}/{kind}": x for kind, x in features.tensors().items()}
        return tensors

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], variants: Sequence[str]) -> Self:
        """The batch of which these are the `tensors`, other names apart, its variants in this order."""
        features: dict[str, Features] = {}
        scores: dict[str, dict[str, Tensor]] = {}
        for variant in variants:
            features[variant] = Features(**below(f"{FEATURES}/{variant}/", tensors))
            for name, rows in below(f"{SCORES}/{variant}/", tensors).items():
                scores.setdefault(name, {})[variant] = rows
        return cls(features, scores)


def below(begin: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {name.removeprefix(begin): tensor for name, tensor in tensors.items() if name.startswith(begin)}


class Gathering:
    """The features of images, and the scores that metrics give single images.

    The images themselves are not held: per image and variant, memory grows by 4 (D + S + K) bytes of its vector, its
    spatial features and its probabilities, without S or K where no metric reads them, and one score for each
    `ScoreMetric`.

    Args:
        extractor: the feature space.
        metrics: of different names.
        prompts: that of every image in their order; None of a model without.
    """

    def __init__(
        self, extractor: FeatureExtractor, metrics: Sequence[Metric], prompts: Sequence[str] | None = None
    ) -> None:
        self.extractor, self.metrics, self.prompts = extractor, metrics, prompts
        self._count = 0
        self._features: dict[str, list[Features]] = {}
        self._scored = [metric for metric in metrics if isinstance(metric, ScoreMetric)]
        self._scores: dict[str, dict[str, list[Tensor]]] = {metric.name: {} for metric in self._scored}

    def add(self, images: Mapping[str, Tensor]) -> None:
        """Describe and take in the next batch; see `described`."""
        self.take(self.described(images, self._count))

    def described(self, images: Mapping[str, Tensor], first: int) -> Described:
        """The features and scores of a batch, which is not taken in.

        Args:
            images: by variant, (N, C, H, W) uint8, `FLOAT` among them; image i of each comes from the same noise.
            first: the place of image 0 among all.

        Raises:
            ValueError: the extractor or a metric cannot take such images.
        """
        features = {variant: self._read(self.extractor.extract(batch)) for variant, batch in images.items()}
        scores = {
            metric.name: {
                variant: self._score(metric, batch, images[FLOAT], first).cpu().double()
                for variant, batch in images.items()
            }
            for metric in self._scored
        }
        return Described(features, scores)

    def take(self, batch: Described) -> None:
        """Take in the next batch, described by this gathering or another one of the same extractor and metrics."""
        for variant, features in batch.features.items():
            self._features.setdefault(variant, []).append(features)
        for name, rows in self._scores.items():
            for variant, scores in batch.scores[name].items():
                rows.setdefault(variant, []).append(scores)
        self._count += len(batch.features[FLOAT].vectors)

    def _read(self, features: Features) -> Features:
        """The features that metrics read, and vectors in any case: variants of different runs are compared by them."""
        read = {"vectors", *(need for metric in self.metrics for need in metric.needs)}
        return Features(**{name: rows for name, rows in vars(features).items() if name in read})

    def _score(self, metric: Metric, images: Tensor, full_precision: Tensor, first: int) -> Tensor:
        """The score that a metric gives every image of a batch, (N,)."""
        if isinstance(metric, ImageMetric):
            return metric.of_pairs(images, full_precision)
        assert isinstance(metric, PromptMetric)
        if self.prompts is None:
            raise ValueError(f"expected the prompts of the images for {metric.name}, got none; leave it out")
        return metric.of_prompts(images, self.prompts[first : first + len(images)])

    def features(self) -> Mapping[str, Features]:
        """The features of all images by variant, on the CPU."""
        return {variant: Features.cat(parts) for variant, parts in self._features.items()}

    def scores(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The scores of all images by metric and variant, (N,) float64 on the CPU."""
        return {
            name: {variant: torch.cat(parts) for variant, parts in variants.items()}
            for name, variants in self._scores.items()
        }
