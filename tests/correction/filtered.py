"""Noise that a filter of the state makes, and regressions that are fitted to it."""

import torch
from diffusers import DDPMScheduler
from torch.nn import functional as F

from ptq_diffusion.correction import Chain, Matched, PairedBatch, PathEvidence, Regression
from ptq_diffusion.sampler import DDIM

STEP = DDIM(8, 1.0, {}).table(DDPMScheduler(clip_sample=False).config)[3]
SHAPE, COUNT = (2, 9, 8), 200
OPTIONS = {"on_q": 1, "on_x": 1, "on_features": 0, "ridges": [0.0], "variance": "original", "path": "float"}


def blurred(x):
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]).double() / 16
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])


def planted(noise=0.3, count=COUNT, seed=0):
    """m smooth and related to x_t; q lacks a blurred part of x_t, which PTQD cannot see, and has white noise."""
    x, e, r = torch.randn(3, count, *SHAPE, generator=torch.Generator().manual_seed(seed)).double()
    m = 0.6 * x + blurred(e) + 0.4
    q = m - 0.5 * blurred(x) + noise * r - 0.1
    features = torch.cat([x * r, q.square()], dim=1)
    return m, q, x, features


def contradicting(even, odd):
    """q is m times one factor in images of even index and times another in those of odd index."""
    m, _, x, features = planted(noise=0.0)
    factor = torch.where(torch.arange(COUNT) % 2 == 0, even, odd)[:, None, None, None]
    return m, factor * m, x, features


def batches(tensors):
    m, q, x, features = tensors
    parts = [slice(0, 61), slice(61, 64), slice(64, None)]
    return [PairedBatch(p.start, q[p], x[p], features[p], m[p], x[p], m[p]) for p in parts]


def method(matching=False, **options):
    """The regression, with matching behind it if so wanted, or matching alone where there is no regressor."""
    options = OPTIONS | options
    if options["on_features"]:
        options = {"readout_bits": 32} | options
    sides = [options[name] for name in ("on_q", "on_x", "on_features")]
    links = {"regression": Regression(**options)} if any(sides) else {}
    if matching:
        links["matched"] = Matched(options["variance"], options["path"], None)
    return Chain(links) if len(links) > 1 else next(iter(links.values()))


def fitted(tensors, **options):
    return method(**options).fit_step(PathEvidence(batches(tensors)), STEP)


def correct(found, tensors):
    _, q, x, features = tensors
    return found.output(q, x, features)
