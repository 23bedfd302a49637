"""Rules for the gain and the offset of a layer's output channels, from its float output and its quantized one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ptq_diffusion.network.rescaling import Rescaling, Spread, alike, channel_rows


@dataclass(frozen=True)
class Comparison(ABC):
    """Moments of a layer's outputs on the same images, quantized y and float m, from which g and c follow.

    Args:
        source: of y.
        target: of m.
    """

    source: Spread
    target: Spread

    @abstractmethod
    def rescaling(self) -> Rescaling:
        """The gain g and the offset c of every channel."""

    @classmethod
    @abstractmethod
    def pooled(cls, steps: Sequence[Self]) -> Self:
        """The moments of the outputs of several steps together, of which each weighs the same."""


class Target(ABC):
    """A float layer's output m, or what is kept of it until the quantized one is known."""

    @abstractmethod
    def compared(self, y: Tensor) -> Comparison:
        """The quantized layer's output y on the same images, of the shape of m, beside m."""

    @abstractmethod
    def equals(self, other: "Target") -> bool:
        """Whether both hold the same numbers."""


class Gain(ABC):
    """A rule for g and c in y~ = g y + c of every channel of a layer's output.

    Class attributes:
        keeps_outputs: whether the float outputs of all layers and images are kept in memory, not their moments alone.
    """

    keeps_outputs: ClassVar[bool]

    @abstractmethod
    def target(self, m: Tensor, channels: int) -> Target:
        """The target that a float layer's output m, (B, ...), sets, whose channels are one of its other dimensions."""


class DeviationRatio(Gain):
    """g = std m / std y and c = E m - g E y: y~ has the mean and the deviation of m, as BCOS (ICLR 2026) has them.

    It maps one Gaussian to another. Noise counts as a part of the deviation: of y = m + e with e independent of m, g
    shrinks both until their sum has the deviation of m. So the layers behind see numbers of the size that they were
    trained on, at a squared error above the least.
    """

    keeps_outputs = False

    def target(self, m: Tensor, channels: int) -> Target:
        return SpreadTarget(Spread.of(m, channels), channels)


class LeastSquares(Gain):
    """g = Cov(y, m) / Var y and c = E m - g E y: the regression of m on y, of least squared error on these images.

    g is the ratio of deviations times the correlation rho of y and m. Of y = m + e with e independent of m it is
    Var m / (Var m + Var e): the larger the noise, the smaller the slope (regression dilution), and y~ has the deviation
    rho std m, where the ratio of deviations keeps std m. Images lose contrast to it, from layer to layer and
    step to step, though each error by itself is the least.

    DEC of CacheQuant (Liu et al., CVPR 2025) has it for one layer at each step, CWAC of QwT-v2 for each block. Channels
    whose deviations are of different magnitudes keep g = 1, as by `DeviationRatio`, and so do those of rho <= 0.
    """

    keeps_outputs = True

    def target(self, m: Tensor, channels: int) -> Target:
        # What is done to an output in place behind the layer does not reach a copy.
        return OutputTarget(m.clone(), channels)


@dataclass(frozen=True)
class SpreadTarget(Target):
    """The spread of m.

    Args:
        spread: of m.
        channels: the dimension of the channels of m.
    """

    spread: Spread
    channels: int

    def compared(self, y: Tensor) -> "SpreadComparison":
        return SpreadComparison(Spread.of(y, self.channels), self.spread)

    def equals(self, other: Target) -> bool:
        return isinstance(other, SpreadTarget) and self.spread.equals(other.spread)


@dataclass(frozen=True)
class OutputTarget(Target):
    """The output m.

    Args:
        m: (B, ...).
        channels: the dimension of its channels.
    """

    m: Tensor
    channels: int

    def compared(self, y: Tensor) -> "PairedComparison":
        source, target = (Spread.of(output, self.channels) for output in (y, self.m))
        of_y, of_m = (_centred(channel_rows(output, self.channels)) for output in (y, self.m))
        return PairedComparison(source, target, (of_y * of_m).mean(-1).mean(0).cpu().double())

    def equals(self, other: Target) -> bool:
        return isinstance(other, OutputTarget) and torch.equal(self.m, other.m)


@dataclass(frozen=True)
class SpreadComparison(Comparison):
    """The means and deviations of y and m alone."""

    def rescaling(self) -> Rescaling:
        return Rescaling.between(self.source, self.target)

    @classmethod
    def pooled(cls, steps: Sequence["SpreadComparison"]) -> "SpreadComparison":
        return SpreadComparison(*_pooled_spreads(steps))


@dataclass(frozen=True)
class PairedComparison(Comparison):
    """The means and deviations of y and m with their covariance.

    Args:
        covariance: E[(y - E y)(m - E m)], (O,) float64.
    """

    covariance: Tensor

    def rescaling(self) -> Rescaling:
        slope = self.covariance / self.source.deviation.square()
        fits = alike(self.source, self.target) & (slope > 0)
        return Rescaling.centred(torch.where(fits, slope, 1.0), self.source, self.target)

    @classmethod
    def pooled(cls, steps: Sequence["PairedComparison"]) -> "PairedComparison":
        within = torch.stack([one.covariance for one in steps]).mean(0)
        of_y, of_m = (torch.stack([spread.mean for spread in spreads]) for spreads in _columns(steps))
        between = ((of_y - of_y.mean(0)) * (of_m - of_m.mean(0))).mean(0)
        return PairedComparison(*_pooled_spreads(steps), within + between)


def _pooled_spreads(steps: Sequence[Comparison]) -> tuple[Spread, Spread]:
    sources, targets = _columns(steps)
    return Spread.pooled(sources), Spread.pooled(targets)


def _columns(steps: Sequence[Comparison]) -> tuple[Sequence[Spread], Sequence[Spread]]:
    return [one.source for one in steps], [one.target for one in steps]


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(-1).mean(0)[:, None]
