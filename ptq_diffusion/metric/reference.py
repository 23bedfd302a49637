"""References: the real images that samples are judged against, or none."""

from abc import ABC, abstractmethod
from pathlib import Path

from ptq_diffusion.artefact.bundle import Bundles
from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.data import FolderImages
from ptq_diffusion.metric.feature.feature import FeatureExtractor
from ptq_diffusion.metric.feature.resnet9 import FEATURE_NETWORKS
from ptq_diffusion.metric.real_statistics import RealStatistics

PIXEL_STATISTICS = Bundles(Path(__file__).parent / "statistics")
"""Statistics of data sets that no bundled feature network was trained on."""


class Reference(ABC):
    """A distribution of real images, as statistics of their features."""

    @abstractmethod
    def statistics(self, extractor: FeatureExtractor) -> RealStatistics | None:
        """Statistics in the extractor's space; None where there is no reference but the float model's own samples.

        Raises:
            ValueError: the statistics were taken in another space.
        """

    @abstractmethod
    def check(self, extractor: FeatureExtractor, neighbours: int) -> None:
        """Find out cheaply whether `statistics` will work.

        Args:
            extractor: the feature space.
            neighbours: how many neighbours every real image must have.

        Raises:
            ValueError: the statistics were taken in another space, or of too few images.
            FileNotFoundError: what the reference reads is not there.
        """

    @abstractmethod
    def checksum(self) -> str:
        """Sixteen hex digits over what the reference reads."""


class NoReference(Reference):
    """No real images are at hand."""

    def statistics(self, extractor: FeatureExtractor) -> RealStatistics | None:  # noqa: ARG002
        return None

    def check(self, extractor: FeatureExtractor, neighbours: int) -> None:  # noqa: ARG002
        return

    def checksum(self) -> str:
        return "none"


class StatisticsReference(Reference):
    """Statistics that were taken earlier.

    Args:
        path: the file, or `bundled:NAME` of the training images of the feature network of that name, or of a data set
            in the pixels' space.
    """

    def __init__(self, path: str) -> None:
        home = PIXEL_STATISTICS if path in PIXEL_STATISTICS.names() else FEATURE_NETWORKS
        self.path = home.path(path, "reference.safetensors")
        if not self.path.is_file():
            raise FileNotFoundError(
                f"expected a file of feature statistics, got {self.path}; goal=reference_statistics makes one, "
                "reference.safetensors in the folder that it prints"
            )

    def statistics(self, extractor: FeatureExtractor) -> RealStatistics | None:
        statistics = RealStatistics.load(self.path)
        statistics.moments.require(extractor.checksum())
        return statistics

    def check(self, extractor: FeatureExtractor, neighbours: int) -> None:
        statistics = self.statistics(extractor)
        _require_neighbours(0 if statistics is None else len(statistics.vectors), neighbours, self.path)

    def checksum(self) -> str:
        return files_digest([self.path])


class FolderReference(Reference):
    """The images of a folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def statistics(self, extractor: FeatureExtractor) -> RealStatistics | None:
        return RealStatistics.of_images(FolderImages(str(self.path)).load().images, extractor)

    def check(self, extractor: FeatureExtractor, neighbours: int) -> None:
        source = FolderImages(str(self.path))
        source.check()
        _require_neighbours(len(source.files()), neighbours, self.path)
        extractor.features(source.first())

    def checksum(self) -> str:
        return FolderImages(str(self.path)).checksum()


def _require_neighbours(images: int, neighbours: int, path: Path) -> None:
    if images < neighbours + 2:
        raise ValueError(
            f"expected at least judging.neighbours + 2 = {neighbours + 2} real images in {path}, got {images}; "
            "add images or lower judging.neighbours"
        )
