"""Weights, their quantizers, and moments of correlated inputs."""

import torch

from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel, PerGroup, PerTensor
from ptq_diffusion.rounding import Moments

SHAPE = (6, 4, 3, 3)
PER_CHANNEL = PerChannel()
GRANULARITIES = [PER_CHANNEL, PerTensor(), PerGroup(2)]
GRIDS = [(symmetric, granularity) for symmetric in (True, False) for granularity in GRANULARITIES]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer_of(weight, bits, symmetric=True, granularity=PER_CHANNEL):
    quantizer = AffineQuantizer(bits, symmetric, granularity, MinMax(), 64)
    quantizer.observe(weight)
    quantizer.freeze()
    return quantizer


def correlated(n, groups=1, rows=64, seed=1):
    """Moments of inputs that share a few directions."""
    inputs = draw(groups, rows, 3, seed=seed) @ draw(groups, 3, n, seed=seed + 1) + 0.3 * draw(groups, rows, n, seed=9)
    return Moments(inputs.mT @ inputs / rows)


def uncorrelated(n, groups=1):
    return Moments(torch.eye(n).expand(groups, n, n))
