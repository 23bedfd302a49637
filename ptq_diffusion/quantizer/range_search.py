"""Range searches: from the values that a tensor took to the interval that its grid should cover."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid


@dataclass(frozen=True)
class Distribution:
    """The distribution that a search reads: weighted values of G groups, each with its exact extremes.

    A weight brings all its values with weight 1; an activation brings the bins of a histogram.

    Args:
        values: (G, n), ascending in a histogram, any order in a weight.
        counts: (G, n) or (1, n), how often each value occurred.
        low: (G,) the smallest value.
        high: (G,) the largest.
    """

    values: Tensor
    counts: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of_groups(cls, values: Tensor, counts: Tensor | None = None) -> "Distribution":
        """The distribution of a (G, n) tensor, each row of which is a group.

        Args:
            values: (G, n).
            counts: (G, n) or (1, n), 0 of a value that only fills its row and lies between the others; None counts
                every value once.
        """
        low, high = values.aminmax(dim=1)
        return cls(values, values.new_ones(1, values.shape[1]) if counts is None else counts, low, high)

    def repeated(self, times: int) -> "Distribution":
        """The distribution of times x G groups: all groups, and all of them again."""
        counts = self.counts if len(self.counts) == 1 else self.counts.repeat(times, 1)
        return Distribution(self.values.repeat(times, 1), counts, self.low.repeat(times), self.high.repeat(times))

    def first(self, groups: int) -> "Distribution":
        """The distribution of the first groups."""
        counts = self.counts if len(self.counts) == 1 else self.counts[:groups]
        return Distribution(self.values[:groups], counts, self.low[:groups], self.high[:groups])


def affine_parameters(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point, each (G,), of the grid that covers [low, high] and zero, which is represented exactly.

    A symmetric grid takes the smallest scale for which both ends fit. A group that is all zero gets scale 1.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    if grid.symmetric:
        scale = torch.maximum(low / grid.low, high / grid.high)
    else:
        scale = (high - low) / (grid.high - grid.low)
    empty = scale < torch.finfo(scale.dtype).tiny
    scale = torch.where(empty, 1.0, scale)
    if grid.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    # On the grid without being clamped to it: low / scale is at most as many steps as the grid has, up to rounding.
    zero_point = (grid.low - (low / scale).round()).to(torch.int32)
    return scale, torch.where(empty, 0, zero_point)


MOST_CANDIDATES = 10_000
"""A limit far above any use: 80 are usual."""
AT_ONCE = 2**16
"""Values whose errors are computed by one call, of as many intervals as that is: a call of few is mostly overhead."""


class RangeSearch(ABC):
    """A rule for the interval that a grid should cover."""

    @abstractmethod
    def __call__(self, distribution: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        """The ends (low, high), each (G,), of the interval of every group."""


class MinMax(RangeSearch):
    """The interval between the extremes: nothing is clipped."""

    def __call__(self, distribution: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return distribution.low, distribution.high


class Percentile(RangeSearch):
    """The interval of the central share of the values; the tails are clipped evenly.

    Args:
        percentile: how much lies inside, in percent, above 50 and at most 100, such as 99.99.

    Raises:
        ValueError: percentile out of range.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        if not 50 < percentile <= 100:
            raise ValueError(f"expected a percentile above 50 and at most 100, got {percentile}")
        self.percentile = percentile

    def __call__(self, distribution: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        values, order = distribution.values.sort(dim=1)
        counts = distribution.counts.expand_as(values).gather(1, order).double()
        until = counts.cumsum(1)
        share = until / counts.sum(1, keepdim=True)
        tail = (1 - self.percentile / 100) / 2
        first = (share <= tail).sum(1, keepdim=True)
        last = (share < 1 - tail).sum(1, keepdim=True)
        low, high = values.gather(1, first).squeeze(1), values.gather(1, last).squeeze(1)
        # The outermost bin of a histogram stands for its extreme value, so that 100 percent is min-max.
        clips_low = (until - counts).gather(1, first).squeeze(1) > 0
        clips_high = until.gather(1, last).squeeze(1) < until[:, -1]
        return torch.where(clips_low, low, distribution.low), torch.where(clips_high, high, distribution.high)


class ShrinkingSearch(RangeSearch):
    """The shrunken interval with the least error, by a measure of error that subclasses give.

    Both ends shrink by one factor, except that the ends of an affine grid shrink each on its own in a second pass.

    Args:
        candidates: how many factors are tried, from 1 down to 1 / candidates.

    Raises:
        ValueError: candidates not positive, or too many.
    """

    def __init__(self, candidates: int) -> None:
        if not 1 <= candidates <= MOST_CANDIDATES:
            raise ValueError(f"expected candidates >= 1 and at most {MOST_CANDIDATES:,}, got {candidates}")
        self.candidates = candidates

    def __call__(self, distribution: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        low, high = distribution.low, distribution.high
        factors = torch.linspace(1, 1 / self.candidates, self.candidates, device=low.device)[:, None]
        low, high = self._best(distribution, grid, low * factors, high * factors)
        if not grid.symmetric:
            # The first pass's own end comes before its shrunken ones.
            low, high = self._best(distribution, grid, torch.cat([low[None], low * factors]), high[None])
            low, high = self._best(distribution, grid, low[None], torch.cat([high[None], high * factors]))
        return low, high

    def _best(self, distribution: Distribution, grid: Grid, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of least error in every group, of (C, G) or (1, G) ends each; the first of equals."""
        lows, highs = torch.broadcast_tensors(lows, highs)
        if lows.shape[1] == 1:  # All intervals at once: a single group is small, nearly always the bins of a histogram.
            errors = self.error(distribution, lows[:, 0], highs[:, 0], grid)[:, None]
        else:
            errors = self._errors(distribution, lows, highs, grid)
        choice = errors.argmin(0, keepdim=True)
        return lows.gather(0, choice)[0], highs.gather(0, choice)[0]

    def _errors(self, distribution: Distribution, lows: Tensor, highs: Tensor, grid: Grid) -> Tensor:
        """The errors of all intervals, (C, G), as many at a time as have `AT_ONCE` values."""
        candidates, groups = lows.shape
        size = min(candidates, max(1, AT_ONCE // distribution.values.numel()))
        repeated = distribution if size == 1 else distribution.repeated(size)
        # Made beforehand: a result that is kept behind each error's intermediates would keep the heap from reusing
        # their place, so that a search took as many times the weight's bytes as it has candidates.
        errors = lows.new_empty(candidates * groups)
        for place in range(0, candidates, size):
            low, high = lows[place : place + size].flatten(), highs[place : place + size].flatten()
            start = place * groups
            errors[start : start + len(low)] = self.error(repeated.first(len(low)), low, high, grid)
        return errors.view(candidates, groups)

    @abstractmethod
    def error(self, distribution: Distribution, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
        """The error of every group, (G,); of one group, for every interval."""


class LpSearch(ShrinkingSearch):
    """The shrunken interval with the least mean |x - x_hat|^p; p = 2 is the mean squared error.

    Args:
        p: the exponent of the error, above 0. 2.4 is the choice of BRECQ's release.
        candidates: how many factors are tried, from 1 down to 1 / candidates.

    Raises:
        ValueError: p or candidates not positive.
    """

    def __init__(self, p: float, candidates: int = 80) -> None:
        if p <= 0:
            raise ValueError(f"expected p > 0, got p={p}")
        super().__init__(candidates)
        self.p = p

    def error(self, distribution: Distribution, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
        """The count-weighted sum of |x - x_hat|^p of every group, (G,); of one group, for every interval."""
        scale, zero_point = affine_parameters(low, high, grid)
        scale, zero_point = scale[:, None], zero_point[:, None]
        error = (distribution.values * (1 / scale)).round_().add_(zero_point).clamp_(grid.low, grid.high)
        error.sub_(zero_point).mul_(scale).sub_(distribution.values).abs_().pow_(self.p).mul_(distribution.counts)
        return error.sum(1)
