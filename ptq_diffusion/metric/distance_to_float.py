"""The judge that chooses a correction: by the distance of its samples to the float model's."""

from collections.abc import Mapping

from torch import Tensor

from ptq_diffusion.metric.distance.fid import paired_fid_to
from ptq_diffusion.metric.feature.feature import FeatureExtractor
from ptq_diffusion.metric.metric import FLOAT


class DistanceToFloat:
    """The Fréchet distance to the float samples from the same noise, with paired errors.

    Args:
        extractor: the space of the features.
        replicates: of the bootstrap.
        seed: of the bootstrap.
    """

    def __init__(self, extractor: FeatureExtractor, replicates: int = 200, seed: int = 0) -> None:
        self.extractor, self.replicates, self.seed = extractor, replicates, seed

    def __call__(
        self, full_precision: Tensor, variants: Mapping[str, Tensor], against: str
    ) -> Mapping[str, tuple[float, float, float]]:
        """The distance of every variant, its difference to that of one of them, and the difference's standard error.

        Args:
            full_precision: images of the float model, (N, C, H, W) uint8.
            variants: images from the same noise, by name.
            against: the name of one variant.

        Raises:
            ValueError: the variants differ in shape, there are fewer than 2 images or 2 replicates.
        """
        images = {against: variants[against], **variants, FLOAT: full_precision}
        features = {name: self.extractor.features(batch) for name, batch in images.items()}
        paired = paired_fid_to(FLOAT, features, self.extractor.checksum(), self.replicates, self.seed)
        trials = {against: (paired.estimates[against].value, 0.0, 0.0)}
        for name in variants:
            if name != against:
                gap = paired.differences[against, name].reversed
                trials[name] = (paired.estimates[name].value, gap.difference, gap.standard_error)
        return trials

    def checksum(self) -> str:
        """The checksum of the extractor."""
        return self.extractor.checksum()
