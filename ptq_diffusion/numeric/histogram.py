"""A streaming histogram whose result does not depend on the order or the split of the values."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SMALLEST = -148
"""The exponent of a range that holds no value but zero: that of the smallest float32, 2**-149."""
MOST_BINS = 2**20
"""The most bins of a histogram: more would cost memory and raise no error."""
TOGETHER = 2**15
"""Values counted at a time on a CPU, few enough to stay in its cache."""


def require_bins(bins: int) -> None:
    """Refuse a number of bins that no histogram has.

    Raises:
        ValueError: it is no power of two, or too few or too many.
    """
    if not 4 <= bins <= MOST_BINS or bins & (bins - 1):
        raise ValueError(f"expected a power of two of 4 to {MOST_BINS} bins, got {bins}")


class DyadicHistogram:
    """Counts of a stream of values in equal bins over [-R, R), R a power of two that grows as needed.

    When a value falls outside, R doubles and neighbouring bins are added up. Bins are dyadic intervals, so the counts
    are exact integers and depend only on the values seen, and memory does not grow with their number.

    Args:
        bins: how many, a power of two of 4 to 2^20.
    """

    def __init__(self, bins: int) -> None:
        require_bins(bins)
        self.bins = bins
        self.exponent: int | None = None
        self.counts = torch.zeros(bins, dtype=torch.int64)
        self.low, self.high = math.inf, -math.inf

    def add(self, values: Tensor) -> None:
        """Count values of any shape.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        values = values.detach().float().flatten()
        # A zero of either sign is stored as 0, or the order of equal extremes would be seen in their bytes.
        low, high = (float(edge) + 0.0 for edge in values.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                "expected finite values to take ranges from, got NaN or infinity; check the network's output"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(abs(low), abs(high))
        self._grow(math.frexp(largest)[1] if largest > 0 else SMALLEST)
        # In float64 a product with a power of two is exact, so no value is rounded over the edge of its bin.
        factor = math.ldexp(self.bins, -self._exponent - 1)
        counts = torch.zeros(self.bins, dtype=torch.int64, device=values.device)
        for few in values.split(TOGETHER if values.device.type == "cpu" else max(len(values), 1)):
            counts += torch.bincount((few.double() * factor).floor_().long() + self.bins // 2, minlength=self.bins)
        self.counts += counts.cpu()

    def join(self, other: "DyadicHistogram") -> None:
        """Count all that another histogram of as many bins has counted.

        Raises:
            ValueError: it has another number of bins, or has counted nothing.
        """
        if other.bins != self.bins:
            raise ValueError(f"expected a histogram of {self.bins} bins, got one of {other.bins}")
        self._grow(other._exponent)
        # Its bins are grown in a copy.
        copy = DyadicHistogram.of_tensors(other.tensors())
        copy._grow(self._exponent)
        self.counts += copy.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def tensors(self) -> dict[str, Tensor]:
        """The counts, the range and the extremes by name, to be kept as safetensors.

        Raises:
            ValueError: nothing was counted.
        """
        extremes = torch.tensor([self.low, self.high], dtype=torch.float64)
        return {"counts": self.counts, "exponent": torch.tensor(self._exponent), "extremes": extremes}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "DyadicHistogram":
        """The histogram whose `tensors` these are.

        Raises:
            KeyError: a tensor is missing.
            ValueError: a number of bins that no histogram has.
        """
        histogram = cls(len(tensors["counts"]))
        histogram.counts, histogram.exponent = tensors["counts"].clone(), int(tensors["exponent"])
        histogram.low, histogram.high = tensors["extremes"].tolist()
        return histogram

    def centres(self) -> Tensor:
        """The middle of every bin, (bins,) float32."""
        width = math.ldexp(2.0, self._exponent) / self.bins
        return ((torch.arange(self.bins, dtype=torch.float64) + 0.5) * width - math.ldexp(1.0, self._exponent)).float()

    @property
    def _exponent(self) -> int:
        if self.exponent is None:
            raise ValueError("the histogram has seen no value; observe some before asking for its bins")
        return self.exponent

    def _grow(self, exponent: int) -> None:
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            merged = self.counts.view(-1, 2).sum(1)
            quarter = self.bins // 4
            self.counts = torch.nn.functional.pad(merged, (quarter, quarter))
            self.exponent += 1
