"""What samples are judged against."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

from ptq_diffusion.data import FolderImages
from ptq_diffusion.metric.feature_network import FeatureExtractor, bundled
from ptq_diffusion.metric.frechet import FeatureMoments


class Reference(ABC):
    """A distribution of real images, as moments of their features."""

    @abstractmethod
    def moments(self, extractor: FeatureExtractor) -> FeatureMoments | None:
        """Moments in the extractor's space; None where there is no reference but the float model's own samples.

        Raises:
            ValueError: the moments were taken in another space.
        """

    @abstractmethod
    def check(self, extractor: FeatureExtractor) -> None:
        """Find out cheaply whether `moments` will work.

        Raises:
            ValueError: the moments were taken in another space.
            FileNotFoundError: what the reference reads is not there.
        """

    @abstractmethod
    def checksum(self) -> str:
        """Sixteen hex digits over what the reference reads."""


class NoReference(Reference):
    """No real images are at hand."""

    def moments(self, extractor: FeatureExtractor) -> FeatureMoments | None:  # noqa: ARG002
        return None

    def check(self, extractor: FeatureExtractor) -> None:  # noqa: ARG002
        return

    def checksum(self) -> str:
        return "none"


class StatisticsReference(Reference):
    """Moments that were taken earlier.

    Args:
        path: the file; None is the bundled one of CIFAR-10's training images.
    """

    def __init__(self, path: str | None) -> None:
        self.path = bundled() / "reference.safetensors" if path is None else Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"expected feature statistics at {self.path}; make them with goal=reference_statistics"
            )

    def moments(self, extractor: FeatureExtractor) -> FeatureMoments | None:
        found = FeatureMoments.load(self.path)
        found.require(extractor.checksum())
        return found

    def check(self, extractor: FeatureExtractor) -> None:
        self.moments(extractor)

    def checksum(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]


class FolderReference(Reference):
    """The images of a folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def moments(self, extractor: FeatureExtractor) -> FeatureMoments | None:
        return FeatureMoments.of_images(FolderImages(str(self.path)).load().images, extractor)

    def check(self, extractor: FeatureExtractor) -> None:
        source = FolderImages(str(self.path))
        source.check()
        if len(source.files()) < 2:
            raise ValueError(f"expected at least 2 images in {self.path} for a covariance, got 1; add more")
        extractor.features(source.first())

    def checksum(self) -> str:
        return FolderImages(str(self.path)).checksum()
