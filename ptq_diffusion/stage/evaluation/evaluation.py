"""The judging of images as a Lightning module."""

from collections.abc import Sequence

import lightning as L

from ptq_diffusion.metric.feature.feature import FeatureExtractor
from ptq_diffusion.metric.gathering import Gathering
from ptq_diffusion.metric.incumbents import Incumbents
from ptq_diffusion.metric.metric import FLOAT, Metric
from ptq_diffusion.metric.reference import Reference
from ptq_diffusion.stage.evaluation.stored_images import Batch


class Evaluation(L.LightningModule):
    """Features and scores of images, gathered batch by batch; it logs torchmetrics' numbers as VARIANT/METRIC.

    Args:
        extractor: the feature space.
        metrics: of different names.
        reference: the real images.
        prompts: that of every image in their order; None of a model without.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        metrics: Sequence[Metric],
        reference: Reference,
        prompts: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.extractor, self.real = extractor, reference.statistics(extractor)
        self.gathering = Gathering(extractor, metrics, prompts)
        # No submodules: their sums are float64, which not every accelerator knows.
        self.incumbents: dict[str, Incumbents] = {}

    def test_step(self, batch: Batch, _: int) -> None:
        features = self.gathering.add(batch)
        real = None if self.real is None else self.real.moments
        for variant, images in batch.items():
            incumbents = self.incumbents.setdefault(variant, Incumbents(self.extractor.num_features, real))
            incumbents.update(features[variant].vectors, features[FLOAT].vectors, images, batch[FLOAT])

    def on_test_epoch_end(self) -> None:
        for variant, incumbents in self.incumbents.items():
            numbers = incumbents.compute()
            self.log_dict({f"{variant}/{name}": value for name, value in numbers.items()})
