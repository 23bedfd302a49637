"""References: the real images that samples are judged against, or none."""

from abc import ABC, abstractmethod
from pathlib import Path

from torch import Tensor

from ptq_diffusion.artefact.bundle import Bundles
from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.data import FolderImages
from ptq_diffusion.metric.coarse_statistics import is_coarse, load_coarse
from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.metric.feature.resnet9 import FEATURE_NETWORKS
from ptq_diffusion.metric.real_statistics import RealStatistics

DATA_SETS = Bundles(Path(__file__).parent / "statistics")
"""Statistics of data sets that no bundled feature network was trained on, a file for each feature space."""


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
    def checksum(self, extractor: FeatureExtractor) -> str:
        """Sixteen hex digits over what the reference reads in the extractor's space.

        Raises:
            ValueError: the reference is of several spaces, and this is none of them.
        """


class NoReference(Reference):
    """No real images are at hand."""

    def statistics(self, extractor: FeatureExtractor) -> RealStatistics | None:  # noqa: ARG002
        return None

    def check(self, extractor: FeatureExtractor, neighbours: int) -> None:  # noqa: ARG002
        return

    def checksum(self, extractor: FeatureExtractor) -> str:  # noqa: ARG002
        return "none"


class StatisticsReference(Reference):
    """Statistics that were taken earlier.

    Args:
        path: the file, or `bundled:NAME` of the training images of the feature network of that name.
    """

    def __init__(self, path: str) -> None:
        if path in DATA_SETS.names():
            raise ValueError(
                f"expected a file of feature statistics, got {path!r}, which are those of a data set in several "
                f"spaces; set reference={path.partition(':')[2]}"
            )
        self.path = FEATURE_NETWORKS.path(path, "reference.safetensors")
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

    def checksum(self, extractor: FeatureExtractor) -> str:  # noqa: ARG002
        return files_digest([self.path])


class DataSetReference(Reference):
    """Statistics of a data set that come with the package, in the feature spaces that they were taken in.

    Args:
        path: `bundled:NAME` of the data set.
    """

    def __init__(self, path: str = "bundled:emoji") -> None:
        if path not in DATA_SETS.names():
            raise ValueError(
                f"expected a data set whose statistics come with the package, {', '.join(DATA_SETS.names())}, got "
                f"{path!r}; reference=statistics reads a file, reference=folder images"
            )
        self.path = DATA_SETS.path(path)

    def statistics(self, extractor: FeatureExtractor) -> RealStatistics:
        file = self._file(extractor)
        statistics = load_coarse(file) if is_coarse(file) else RealStatistics.load(file)
        statistics.moments.require(extractor.checksum())
        return statistics

    def check(self, extractor: FeatureExtractor, neighbours: int) -> None:
        _require_neighbours(len(self.statistics(extractor).vectors), neighbours, self.path)

    def checksum(self, extractor: FeatureExtractor) -> str:
        return files_digest([self._file(extractor)])

    def _file(self, extractor: FeatureExtractor) -> Path:
        spaces = {file.stem: file for file in sorted(self.path.glob("*.safetensors"))}
        if extractor.name not in spaces:
            raise ValueError(
                f"expected a feature space in which statistics of {self.path.name} come with the package, "
                f"{' or '.join(spaces)}, got {extractor.name}; set feature={next(iter(spaces))}, or make others with "
                "goal=reference_statistics"
            )
        return spaces[extractor.name]


class FolderReference(Reference):
    """The images of a folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def statistics(self, extractor: FeatureExtractor) -> RealStatistics | None:
        source = FolderImages(str(self.path))
        channels = _channels(source.check(), extractor)
        # One batch after the other: all images may be more than the memory holds.
        batches = (batch.expand(-1, channels, -1, -1) for batch in source.batches(extractor.batch))
        features = [Features(one.vectors, one.spatial) for one in map(extractor.extract, batches)]
        return RealStatistics.of_batches(features, extractor.checksum())

    def check(self, extractor: FeatureExtractor, neighbours: int) -> None:
        source = FolderImages(str(self.path))
        example = source.check()
        _require_neighbours(len(source.files()), neighbours, self.path)
        extractor.features(example.expand(-1, _channels(example, extractor), -1, -1))

    def checksum(self, extractor: FeatureExtractor) -> str:  # noqa: ARG002
        return FolderImages(str(self.path)).checksum()


def _channels(images: Tensor, extractor: FeatureExtractor) -> int:
    """Three for grey images (N, 1, H, W) in a space of colours only, where grey is repeated; else their own number."""
    if images.shape[1] == 1:
        try:
            extractor.features(images[:1])
        except ValueError:
            return 3
    return images.shape[1]


def _require_neighbours(images: int, neighbours: int, path: Path) -> None:
    if images < neighbours + 2:
        raise ValueError(
            f"expected at least judging.neighbours + 2 = {neighbours + 2} real images in {path}, got {images}; "
            "add images or lower judging.neighbours"
        )
