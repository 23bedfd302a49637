"""Streaming first and second moments in float64."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

TOGETHER = 1024
"""Observations in float64 at a time, few enough to stay in a processor's cache."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and centred second moment of D-dimensional observations; merging is Chan's pairwise update.

    No observations have count 0, zeros for a mean and a scatter, no covariance (NaN), and merge as nothing.

    Args:
        count: number of observations.
        mean: (D,) float64.
        scatter: (D, D) float64, the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, observations: Tensor) -> "Moments":
        """Moments of the rows of an (N, D) tensor.

        Raises:
            ValueError: an observation is NaN or infinite.
        """
        moments = reduce(cls.merge, map(cls._of_few, observations.split(TOGETHER)))
        if not torch.isfinite(moments.scatter).all():
            raise ValueError("expected finite observations, got NaN or infinity; check the network's output")
        return moments

    @classmethod
    def _of_few(cls, observations: Tensor) -> "Moments":
        rows = observations.double()
        mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of observations."""
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    def without(self, part: "Moments") -> "Moments":
        """The moments of the observations that a part of them leaves; the inverse of `merge`."""
        count = self.count - part.count
        if count == 0:
            return Moments(0, torch.zeros_like(self.mean), torch.zeros_like(self.scatter))
        shift = part.mean - self.mean
        mean = self.mean - shift * (part.count / count)
        scatter = self.scatter - part.scatter - torch.outer(shift, shift) * (part.count * self.count / count)
        return Moments(count, mean, scatter)

    def mapped(self, matrix: Tensor) -> "Moments":
        """The moments of matrix x, for a (E, D) matrix."""
        return Moments(self.count, matrix @ self.mean, matrix @ self.scatter @ matrix.T)

    @property
    def covariance(self) -> Tensor:
        """The population covariance, (D, D)."""
        return self.scatter / self.count
