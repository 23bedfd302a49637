"""Groups of steps of a sampler's table, each with ranges of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import Tensor


class StepGroups(ABC):
    """A division of the steps of a table into runs that share the ranges of an input.

    One group is what static quantization has always been. A group for every step of a layer that sees only the time
    embedding is the finite set of ranges of TFMQ-DM, Huang et al., CVPR 2024, arXiv 2311.16503.

    Args:
        count: of groups.
        exact: patterns of the names of operands, such as `*time_emb_proj`, that have a range at every step.

    Raises:
        ValueError: the count is not positive.
    """

    def __init__(self, count: int, exact: Sequence[str]) -> None:
        if count < 1:
            raise ValueError(f"expected 1 group of steps or more, got {count}")
        self.count, self.exact = count, tuple(exact)

    @property
    def by_step(self) -> bool:
        """Whether ranges belong to steps of one table."""
        return self.count > 1 or bool(self.exact)

    def observed(self, operand: str, steps: int) -> list[int]:
        """The group that an operand's values are collected in, at every step; [0] where all steps share one.

        Raises:
            ValueError: the groups do not fit so many steps.
        """
        if self.is_exact(operand):
            return list(range(steps))
        return _groups_of(self._observed(steps), steps)

    def is_exact(self, operand: str) -> bool:
        """Whether an operand has a range at every step."""
        return any(fnmatchcase(operand, pattern) for pattern in self.exact)

    def require(self, operands: Sequence[str], steps: int) -> None:
        """Refuse groups that do not fit a table, or patterns that name nothing.

        Raises:
            ValueError: the message names the pattern, or the numbers of steps.
        """
        for pattern in self.exact:
            if not any(fnmatchcase(operand, pattern) for operand in operands):
                raise ValueError(
                    f"expected quantizer.steps.exact to name inputs of this network, such as {operands[0]}, got "
                    f"{pattern!r}, which matches none"
                )
        self._observed(steps)

    def divided(self, features: Tensor) -> list[int]:
        """The group of every step once all is observed, from what was collected; by default it stays as it is.

        Args:
            features: (S, F), numbers that describe the operand's range at every step.
        """
        return list(range(len(features)))

    @abstractmethod
    def _observed(self, steps: int) -> Sequence[int]:
        """The first step of every group, the first of which is 0."""


class EqualGroups(StepGroups):
    """Runs of equal length, up to one step.

    Args:
        count: of groups; 1 has one range for all steps.
        exact: see `StepGroups`.
    """

    def _observed(self, steps: int) -> Sequence[int]:
        require_fit(self.count, steps)
        return [-(-steps * group // self.count) for group in range(self.count)]


class GivenGroups(StepGroups):
    """Runs that begin at given steps.

    Args:
        starts: the index of the first step of every group, 0 at t = T, ascending from 0.
        exact: see `StepGroups`.

    Raises:
        ValueError: the starts do not ascend from 0.
    """

    def __init__(self, starts: Sequence[int], exact: Sequence[str]) -> None:
        super().__init__(max(len(starts), 1), exact)
        if not starts or starts[0] != 0 or any(second <= first for first, second in pairwise(starts)):
            raise ValueError(f"expected steps that ascend from 0, such as [0,5,15], got {list(starts)}")
        self.starts = tuple(starts)

    def _observed(self, steps: int) -> Sequence[int]:
        if self.starts[-1] >= steps:
            raise ValueError(
                f"expected groups that begin within the {steps} steps of the table, got one that begins at step "
                f"{self.starts[-1]}; lower quantizer.steps.starts or take more steps"
            )
        return self.starts


class ClusteredGroups(StepGroups):
    """Runs of steps with similar ranges: those with the least squared distance of ranges to their run's mean.

    Every operand has runs of its own. The optimum is found by dynamic programming, Fisher, JASA 53, 1958, so that no
    seed matters. Observation keeps the distribution at every step until then.

    Args:
        count: of groups.
        exact: see `StepGroups`.
    """

    def _observed(self, steps: int) -> Sequence[int]:
        require_fit(self.count, steps)
        return range(steps) if self.count > 1 else [0]

    def divided(self, features: Tensor) -> list[int]:
        steps = len(features)
        return _groups_of(fisher_starts(features, self.count), steps) if steps > 1 else [0]


def fisher_starts(features: Tensor, count: int) -> list[int]:
    """The first step of every one of so many runs with the least sum of squared distances to their means.

    Args:
        features: (S, F).
        count: 1 to S.
    """
    steps, features = len(features), features.double()
    zeros = features.new_zeros(1, features.shape[1])
    sums, squares = (torch.cat([zeros, part.cumsum(0)]) for part in (features, features.square()))
    # spread[i, j]: of the steps i to j - 1, infinite where there are none.
    first, last = torch.arange(steps + 1)[:, None], torch.arange(steps + 1)[None]
    length = (last - first).clamp(min=1)
    spread = (squares[None] - squares[:, None] - (sums[None] - sums[:, None]).square() / length[..., None]).sum(-1)
    spread = torch.where(last > first, spread.clamp(min=0), torch.inf)
    best, origins = spread[0], list[Tensor]()
    for _ in range(count - 1):
        best, origin = (best[:, None] + spread).min(0)
        origins.append(origin)
    starts, end = list[int](), steps
    for origin in reversed(origins):
        end = int(origin[end])
        starts.append(end)
    return [0, *reversed(starts)]


def _groups_of(starts: Sequence[int], steps: int) -> list[int]:
    """The group of every step; [0] of one group."""
    if len(starts) == 1:
        return [0]
    return [sum(start <= step for start in starts) - 1 for step in range(steps)]


def require_fit(count: int, steps: int) -> None:
    """Refuse more groups than steps."""
    if count > steps:
        raise ValueError(
            f"expected at most as many groups as the table has steps, {steps}, got {count}; lower quantizer.steps.count"
        )
