"""Range search by the information that quantization loses."""

import math

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer.range_search import Distribution, ShrinkingSearch, affine_parameters

EMPTY = 1e-9
"""The share that a bin without values has where values were clipped to it, so that its logarithm is finite."""


class EntropySearch(ShrinkingSearch):
    """The shrunken interval with the least relative entropy of the clipped values to the quantized ones.

    KL(P || Q) = sum P log(P / Q) over bins: P has the clipped values in its outermost bins, Q has those of each
    integer of the grid spread evenly over its bins that hold any, without the clipped ones. Migacz, "8-bit Inference
    with TensorRT", GTC 2017; there for symmetric grids, here for both.

    Args:
        bins: of the interval between the extremes, at most; P and Q are histograms.
        candidates: how many factors are tried, from 1 down to 1 / candidates.

    Raises:
        ValueError: bins below 4, or candidates not positive.
    """

    def __init__(self, bins: int = 2048, candidates: int = 80) -> None:
        if bins < 4:
            raise ValueError(f"expected bins >= 4, got {bins}")
        super().__init__(candidates)
        self.bins = bins

    def __call__(self, distribution: Distribution, grid: Grid) -> tuple[Tensor, Tensor]:
        return super().__call__(self.binned(distribution), grid)

    def binned(self, distribution: Distribution) -> Distribution:
        """The distribution as a histogram of at most as many bins as the search has, in every group.

        Bins are as wide as a power of two and meet at 0, so that no bin of an observed histogram is cut in two.
        """
        span = (distribution.high - distribution.low).clamp(min=torch.finfo(torch.float32).tiny).double()
        width = torch.exp2((span / (self.bins - 1)).log2().ceil())[:, None]
        first = (distribution.low[:, None].double() / width).floor()
        places = ((distribution.values.double() / width).floor() - first).clamp(0, self.bins - 1).long()
        counts = torch.zeros(len(places), self.bins).to(distribution.values)
        counts.scatter_add_(1, places, distribution.counts.expand_as(distribution.values).contiguous())
        centres = ((first + torch.arange(self.bins).to(first) + 0.5) * width).float()
        low, high = distribution.low[:, None], distribution.high[:, None]
        return Distribution(centres.clamp(low, high), counts, distribution.low, distribution.high)

    def error(self, distribution: Distribution, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
        """KL(P || Q) of every group, (G,), in nats; of one group, for every interval."""
        scale, zero_point = (parameter[:, None] for parameter in affine_parameters(low, high, grid))
        places = (distribution.values * (1 / scale)).round() + zero_point
        inside = (places >= grid.low) & (places <= grid.high)
        integers = (places.clamp(grid.low, grid.high) - grid.low).long()
        counts = distribution.counts.expand_as(places)
        clipped = _clipped(counts, inside, places, grid)
        occupied = (clipped > 0).to(counts)
        mass, bins = (
            torch.zeros(len(places), 2**grid.bits).to(counts).scatter_add_(1, integers, part)
            for part in (counts * inside, occupied)
        )
        q = (mass / bins.clamp(min=1)).gather(1, integers) * occupied
        p, q = (part / part.sum(1, keepdim=True).clamp(min=EMPTY) for part in (clipped, q))
        return (p * ((p + (p == 0)).log() - q.clamp(min=EMPTY).log())).sum(1)


def _clipped(counts: Tensor, inside: Tensor, places: Tensor, grid: Grid) -> Tensor:
    """The counts, of those inside an interval and with all others added to the nearest bin inside."""
    clipped = counts * inside
    below, above = (counts * (places < grid.low)).sum(1), (counts * (places > grid.high)).sum(1)
    order = torch.arange(counts.shape[1]).to(counts)
    first = torch.where(inside, order, math.inf).argmin(1, keepdim=True)
    last = torch.where(inside, order, -math.inf).argmax(1, keepdim=True)
    return clipped.scatter_add(1, first, below[:, None]).scatter_add(1, last, above[:, None])
