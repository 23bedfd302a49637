"""The contract of a metric, and the evidence that all metrics of one judgement share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor

from ptq_diffusion.metric.feature.feature import Features
from ptq_diffusion.metric.inference.bootstrap import Paired, Track, paired_mean
from ptq_diffusion.metric.real_statistics import RealStatistics

FLOAT = "full_precision"
"""The variant that fidelity is measured to."""

Need = Literal["vectors", "spatial", "probabilities"]
"""A kind of feature, by its name in `Features`."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings:
    """Settings that all metrics share: `cfg.judging` and the seeds of the images.

    Args:
        replicates: of the bootstrap.
        seed: of the bootstrap.
        neighbours: k of precision, recall, density and coverage.
        seeds: of the images, which follow each other, equally many of each.
    """

    replicates: int
    seed: int
    neighbours: int
    seeds: Sequence[int]

    @property
    def resampling(self) -> Mapping[str, int]:
        """The arguments that every paired metric takes."""
        return {"replicates": self.replicates, "seed": self.seed, "strata": len(self.seeds)}


@dataclass(frozen=True)
class Evidence:
    """Features and scores of the images of several variants from the same noise, and the real images beside them.

    Args:
        features: of the images by variant, `FLOAT` among them; row i of each comes from the same noise.
        scores: by the name of a `ScoreMetric` and by variant, (N,) float64, score i of image i.
        real: statistics of the real images; None where the images of `FLOAT` stand in their place.
        extractor: the checksum of the feature extractor.
        settings: shared by all metrics.
        track: wraps the long loops, to draw their progress.
    """

    features: Mapping[str, Features]
    scores: Mapping[str, Mapping[str, Tensor]]
    real: RealStatistics | None
    extractor: str
    settings: Settings
    track: Track = lambda items: items
    _results: dict[Callable[["Evidence"], Any], Any] = field(default_factory=dict, init=False, repr=False)

    def has(self, need: Need) -> bool:
        """Whether every variant, and the real images where they have a part in it, have this kind of feature."""
        real = self.real is None or need != "spatial" or self.real.spatial is not None
        return real and all(getattr(features, need) is not None for features in self.features.values())

    def rows(self, need: Need) -> dict[str, Tensor]:
        """One kind of feature by variant, (N, D) float32; `has` says whether there is one."""
        return {variant: getattr(features, need) for variant, features in self.features.items()}

    def shared(self, function: Callable[["Evidence"], Result]) -> Result:
        """The result of a function of this evidence, computed once for all metrics that ask for it."""
        if function not in self._results:
            self._results[function] = function(self)
        return self._results[function]


class Metric(ABC):
    """A number for every variant, with errors that are paired by noise.

    Class attributes:
        name: of the number in reports; its standard error is <name>_se.
        needs: the kinds of features that it reads; there is no number where the extractor or the reference lacks one.
        to_float: whether it is measured to the float variant, so that pairs with that variant say nothing new.
        higher_is_better: whether more of it is better, for tables that sort by it.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    to_float: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = False

    def check(self, prompts: Sequence[str] | None) -> None:  # noqa: ARG002
        """Refuse what the metric cannot be taken of, before anything is computed; by default nothing is refused.

        Args:
            prompts: of the images; None of a model without.

        Raises:
            ValueError: the metric lacks something; the message says what to do.
        """
        return

    def checksum(self) -> str | None:
        """Sixteen hex digits over the files that the metric reads; None of one that reads none."""
        return None

    @abstractmethod
    def paired(self, evidence: Evidence) -> Paired:
        """The number of every variant and the differences of all pairs; equal evidence gives equal numbers.

        Args:
            evidence: which has all that the metric needs.

        Raises:
            ValueError: there are too few images or replicates.
        """


class ScoreMetric(Metric):
    """The mean of a score that every image has for itself.

    Scores are taken batch by batch, so that no more images than a batch are ever in memory.
    """

    def paired(self, evidence: Evidence) -> Paired:
        return paired_mean(evidence.scores[self.name], **evidence.settings.resampling)


class ImageMetric(ScoreMetric):
    """The mean of a score that every image has beside the float image of the same noise."""

    @abstractmethod
    def of_pairs(self, images: Tensor, full_precision: Tensor) -> Tensor:
        """The score of every image of a batch, (N,).

        Args:
            images: of any variant, (N, C, H, W) uint8.
            full_precision: the images of `FLOAT`, the same shape; image i of both comes from the same noise.

        Raises:
            ValueError: the images are not of such a shape or type.
        """


class PromptMetric(ScoreMetric):
    """The mean of a score that every image has beside its prompt."""

    @abstractmethod
    def of_prompts(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The score of every image of a batch, (N,).

        Args:
            images: of any variant, (N, C, H, W) uint8.
            prompts: theirs, N of them.
        """


class Likeness(ImageMetric):
    """The likeness of every image to its float image, which the float variant has not; more is better."""

    higher_is_better = True
    to_float = True
