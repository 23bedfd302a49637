"""The contract of a correction."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import ClassVar, Self, TypeVar

from torch import Tensor

from ptq_diffusion.correction.fitted import FittedCorrection, StepCorrection
from ptq_diffusion.correction.noise.statistics import NoiseStatistics
from ptq_diffusion.correction.repair.repair import Repair
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import QuantizedDenoiser, Rescaling
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table


class Correction(ABC):  # noqa: B024
    """A method of repair, before it has seen noise: from moments at once, or step by step from what each will see.

    Attributes:
        asks_again: whether a step asks the network more than once, for which a stock pipeline has no place.
    """

    asks_again: ClassVar[bool] = False

    def check(self, steps: Table) -> None:  # noqa: ARG002, B027
        """Refuse a table that this method cannot correct, before anything is measured; by default none is refused.

        Raises:
            ValueError: the table's sampler lacks what the method needs.
        """

    def check_images(self, images: int, channels: int) -> None:  # noqa: ARG002, B027
        """Refuse too few images to be fitted on, before anything is measured; by default any number will do.

        Raises:
            ValueError: the method needs more of them, for images of so many channels.
        """

    def check_carried(self, steps: Table) -> None:  # noqa: ARG002, B027
        """Refuse what cannot be interpolated from this table onto another; by default nothing is refused.

        Raises:
            ValueError: the method makes a table or a noise scale that belongs to this table alone.
        """


class MomentCorrection(Correction):
    """A method that needs no more than the moments of the noise along float sampling."""

    @abstractmethod
    def fit(self, statistics: NoiseStatistics, steps: Table) -> FittedCorrection:
        """Turn statistics of every step of a table into a correction of that table.

        Raises:
            ValueError: the statistics do not cover the table, or are degenerate.
        """

    def residual_scale(self, k: float) -> float:  # noqa: ARG002
        """What D - k m - mu is multiplied by where the report's R^2 is taken; 1 as PTQD splits the noise."""
        return 1.0


@dataclass(frozen=True)
class Batch:
    """Some images at one step.

    Args:
        first: the index of its first image.
        q: the quantized output on x_t, (B, C, H, W).
        x_t: the states on the path, (B, C, H, W).
        features: the input of the quantized output layer, (B, F, H, W).
        float_m: the float output on float_x_t.
        float_x_t: where float sampling with the same noise is; on the float path x_t itself.
    """

    first: int
    q: Tensor
    x_t: Tensor
    features: Tensor
    float_m: Tensor
    float_x_t: Tensor

    def half(self, parity: int) -> Self:
        """Its images of even (0) or odd (1) index, of which there may be none, counted anew among their like."""
        offset = (self.first + parity) % 2
        tensors = {field.name: getattr(self, field.name)[offset::2] for field in fields(self) if field.name != "first"}
        return type(self)((self.first + offset) // 2, **tensors)

    def repaired(self, repairs: Sequence[Repair]) -> Tensor:
        """m~ after all repairs, (B, C, H, W)."""
        m = self.q
        for repair in repairs:
            m = repair.output(m, self.x_t, self.features)
        return m


@dataclass(frozen=True)
class AskedBatch(Batch):
    """Images about which the float network was asked where they are.

    Args:
        m: the float output on x_t, (B, C, H, W).
    """

    m: Tensor


SomeBatch = TypeVar("SomeBatch", bound=Batch)
"""Batches of one of the two kinds."""


class FitPath(Enum):
    """Which states a correction is fitted on."""

    FLOAT = "float"
    """Those that float sampling passes through."""
    CORRECTED = "corrected"
    """Those that the quantized network reaches with the steps before corrected."""


class PathCorrection(Correction):
    """A method that is fitted step by step on images that walk along a path.

    Attributes:
        path: the path.
        asked: how many images, the first ones, the float network is asked about on the path; None for all.
        together: how many images `rescalings` is given at once; 0 where there are none to find.
    """

    path: FitPath
    asked: int | None = None
    together: int = 0

    def rescalings(
        self,
        model: Denoiser,
        quantized: QuantizedDenoiser,  # noqa: ARG002
        x_t: Tensor,
        step: Step,
    ) -> tuple[Mapping[str, Rescaling], Tensor]:
        """What layers compute with at a step, found before the step is fitted, by default as they are; and m on x_t.

        Args:
            model: the float model.
            quantized: the quantized one.
            x_t: states on the path, (B, C, H, W), of the first `together` images.
            step: the row of the table.
        """
        return {}, model.predict(x_t, step).m

    @abstractmethod
    def fit_step(self, asked: Sequence[AskedBatch], step: Step, others: Sequence[Batch] = ()) -> StepCorrection:
        """The correction of one step.

        Args:
            asked: the first images; each batch may be read from disk when it is asked for.
            step: the sampler's row.
            others: all further images.

        Raises:
            ValueError: the images do not determine the correction.
        """
