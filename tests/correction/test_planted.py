"""What every correction of conf/correction makes of noise that was planted, and of moments that determine nothing.

States are those of Gaussian data, whose denoiser is exact; corrections are fitted to some images and judged on others.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from ptq_diffusion.correction import (
    Chain,
    Fingerprint,
    FittedCorrection,
    Matched,
    NoiseStatistics,
    PairedBatch,
    PathEvidence,
    Reads,
    Regression,
    fit_moments,
)
from ptq_diffusion.model import GaussianDenoiser
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.sampler import DDIM
from tests.correction.presets import CORRECTIONS

SHAPE = (2, 8, 8)
MODEL = GaussianDenoiser(SHAPE, mean=0.4, std=0.5)
STEPS = DDIM(4, 0.5, {}).table(MODEL.scheduler_config)
MU = torch.tensor([0.1, -0.15]).view(2, 1, 1)
LEAVING_THE_MEAN = {"none", "q_drift", "variance", "correlated", "correlated_variance", "qncd", "rescaled"}
every_correction = pytest.mark.parametrize("name", CORRECTIONS)


def states(step, count, *seed):
    data, z = torch.randn(2, count, *SHAPE, generator=generator("states", step.i, *seed))
    return step.abar_t**0.5 * (0.4 + 0.5 * data) + (1 - step.abar_t) ** 0.5 * z


def one_number(m, x):
    """k, mu and white noise."""
    return m - 0.1 * m + MU + 0.05 * torch.randn(m.shape, generator=generator("r", len(m)))


def neighbours(m, x):
    """A filter of the state whose centre is 0, so that pixel by pixel it goes with nothing, a fifth as strong as m."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).expand(2, 1, 3, 3)
    filtered = F.conv2d(F.pad((x - x.mean()) / x.std(), (1,) * 4, mode="reflect"), kernel, groups=2)
    return m + 0.1 * m.std() * filtered


def features(q):
    return torch.cat([q, 1 - q[:, :1]], dim=1)


def fit(correction, tensors):
    """Of (m, q, x_t) at every step."""
    if correction.reads is not Reads.MOMENTS:
        batches = [PairedBatch(0, q, x, features(q), m, x, m) for m, q, x in tensors]
        return FittedCorrection(
            STEPS,
            [correction.fit_step(PathEvidence([batch]), step) for batch, step in zip(batches, STEPS, strict=True)],
        )
    owner = Fingerprint("planted", STEPS.fingerprint(), SHAPE)
    return fit_moments(correction, NoiseStatistics.of(owner, tensors, first=0), STEPS)


def draw(noise, count, *seed):
    for step in STEPS:
        x = states(step, count, *seed)
        m = MODEL.predict(x, step).m
        yield m, noise(m, x), x


def errors(name, noise):
    """m~ - m and q - m of new images, at every step."""
    found = fit(CORRECTIONS[name], list(draw(noise, 300)))
    return [
        (found.output(q, x, features(q), step) - m, q - m)
        for (m, q, x), step in zip(draw(noise, 301, "new"), STEPS, strict=True)
    ]


@every_correction
def test_planted_k_mu_and_white_noise(name):
    """Those that know of a bias leave none in new images, within 4 standard errors, and less error; the others all."""
    for after, before in errors(name, one_number):
        error = (before.var((0, 2, 3)) * (1 / 300 + 1 / 301) / 64) ** 0.5
        mean = after.mean((0, 2, 3)).abs()
        if name in LEAVING_THE_MEAN:
            assert (mean > 0.9 * before.mean((0, 2, 3)).abs()).all()
        else:
            assert (mean < 4 * error).all()
            assert after.square().mean() < 0.9 * before.square().mean()


def sees_neighbours(correction):
    links = correction.links.values() if isinstance(correction, Chain) else [correction]
    return any(isinstance(link, Regression | Matched) for link in links)


@every_correction
def test_noise_that_is_a_filter_of_the_state(name):
    """What sees more than its own pixel removes it; PTQD and whatever has one number for all pixels cannot."""
    for after, before in errors(name, neighbours):
        left = float(after.square().mean() / before.square().mean())
        if sees_neighbours(CORRECTIONS[name]):
            assert left < 0.1
        else:
            assert left > 0.9


def constant(m, q):
    return torch.zeros_like(m) + 0.3, torch.zeros_like(q) + 0.5


DEGENERATE = {
    "the float output is constant": (8, lambda m, q: (torch.zeros_like(m) + 0.3, q)),
    "the quantized output is constant": (8, lambda m, q: (m, torch.zeros_like(q) + 0.5)),
    "both are constant": (8, constant),
    "both are zero": (8, lambda m, q: (torch.zeros_like(m), torch.zeros_like(q))),
    "the quantized output is zero": (8, lambda m, q: (m, torch.zeros_like(q))),
    "channels that are copies": (8, lambda m, q: (m[:, :1].expand_as(m), q[:, :1].expand_as(q))),
    "one image": (1, lambda m, q: (m, q)),
    "two images": (2, lambda m, q: (m, q)),
}


@every_correction
@pytest.mark.parametrize("case", DEGENERATE)
def test_what_determines_nothing_gives_numbers_or_one_clear_error(name, case):
    count, made = DEGENERATE[case]
    tensors = [(*made(m, q), x) for m, q, x in draw(one_number, count)]
    try:
        found = fit(CORRECTIONS[name], tensors)
    except ValueError as error:
        assert str(error).startswith("expected ") and (", got " in str(error) or ", at t = " in str(error))
        return
    for (_, q, x), step, report in zip(tensors, STEPS, found.report(), strict=True):
        output = found.output(q, x, features(q), step)
        assert torch.isfinite(output).all() and output.abs().max() < 100
        assert math.isfinite(found.sigma(step)) and math.isfinite(report.variance) and math.isfinite(report.r2)
