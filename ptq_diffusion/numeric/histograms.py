"""Streaming histograms of the groups of a tensor, side by side."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ptq_diffusion.numeric.histogram import DyadicHistogram


class Histograms:
    """A `DyadicHistogram` of each of G groups, of which the first values tell the number.

    Args:
        bins: of each.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._histograms: list[DyadicHistogram] = []

    def __len__(self) -> int:
        return len(self._histograms)

    def add(self, rows: Tensor, counts: Tensor) -> None:
        """Count the values of every group.

        Args:
            rows: (G, n).
            counts: (1, n) or (G, n), 0 where a value is not to be counted and 1 where it is.

        Raises:
            ValueError: another number of groups than before, or a value that is NaN or infinite.
        """
        if not self._histograms:
            self._histograms = [DyadicHistogram(self.bins) for _ in rows]
        if len(rows) != len(self._histograms):
            raise ValueError(f"expected values of {len(self._histograms)} groups as before, got {len(rows)}")
        whole = len(counts) == 1
        for place, (histogram, row) in enumerate(zip(self._histograms, rows, strict=True)):
            histogram.add(row if whole else row[counts[place] > 0])

    def join(self, other: "Histograms") -> None:
        """Count all that the histograms of another stream of the same groups have counted.

        Raises:
            ValueError: they are of another number of groups or bins.
        """
        for own, more in zip(self._histograms, other._histograms, strict=True):
            own.join(more)

    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The bins that hold a value of any group: their centres (G, n), counts (G, n), extremes low and high (G,)."""
        counts = torch.stack([histogram.counts for histogram in self._histograms])
        low, high = self._extremes().float().unbind(1)
        filled = (counts > 0).any(0)
        centres = torch.stack([histogram.centres()[filled] for histogram in self._histograms])
        # A bin's centre may lie outside what was seen; a value never does.
        return centres.clamp(low[:, None], high[:, None]), counts[:, filled].float(), low, high

    def tensors(self) -> dict[str, Tensor]:
        """The counts (G, bins), the exponents (G,) of the ranges and the extremes (G, 2), to be kept as safetensors."""
        parts = [histogram.tensors() for histogram in self._histograms]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Histograms":
        """The histograms whose `tensors` these are.

        Raises:
            KeyError: a tensor is missing.
            ValueError: a number of bins that no histogram has.
        """
        histograms = cls(tensors["counts"].shape[1])
        groups = range(len(tensors["counts"]))
        histograms._histograms = [DyadicHistogram.of_tensors({k: t[g] for k, t in tensors.items()}) for g in groups]
        return histograms

    def _extremes(self) -> Tensor:
        return torch.tensor([[histogram.low, histogram.high] for histogram in self._histograms], dtype=torch.float64)
