"""Features and scores of images that are seen batch by batch, as far as metrics read them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.metric.metric import FLOAT, ImageMetric, Metric, PromptMetric


class Gathering:
    """The features of images, and the scores that metrics give single images.

    The images themselves are not held: per image and variant, memory grows by its features (4 D bytes and as much for
    spatial ones) and one score for each `ImageMetric`.

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
        self._scores: dict[str, dict[str, list[Tensor]]] = {
            metric.name: {} for metric in metrics if isinstance(metric, ImageMetric | PromptMetric)
        }

    def add(self, images: Mapping[str, Tensor]) -> Mapping[str, Features]:
        """Take in the next batch, and give its features by variant.

        Args:
            images: by variant, (N, C, H, W) uint8, `FLOAT` among them; image i of each comes from the same noise.

        Raises:
            ValueError: the extractor or a metric cannot take such images.
        """
        features = {variant: self.extractor.extract(batch) for variant, batch in images.items()}
        for variant, rows in features.items():
            self._features.setdefault(variant, []).append(rows)
        for metric in (metric for metric in self.metrics if metric.name in self._scores):
            for variant, batch in images.items():
                scores = self._scored(metric, batch, images[FLOAT]).double().cpu()
                self._scores[metric.name].setdefault(variant, []).append(scores)
        self._count += len(images[FLOAT])
        return features

    def _scored(self, metric: Metric, images: Tensor, full_precision: Tensor) -> Tensor:
        """The score that a metric gives every image of the next batch, (N,)."""
        if isinstance(metric, ImageMetric):
            return metric.of_pairs(images, full_precision)
        assert isinstance(metric, PromptMetric)
        if self.prompts is None:
            raise ValueError(f"expected the prompts of the images for {metric.name}, got none; leave it out")
        return metric.of_prompts(images, self.prompts[self._count : self._count + len(images)])

    def features(self) -> Mapping[str, Features]:
        """The features of all images by variant, on the CPU."""
        return {variant: Features.cat(parts) for variant, parts in self._features.items()}

    def scores(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The scores of all images by metric and variant, (N,) float64 on the CPU."""
        return {
            name: {variant: torch.cat(parts) for variant, parts in variants.items()}
            for name, variants in self._scores.items()
        }
