"""The acceptance test of the mathematics: PTQD gives a noisy sampler back the law of the exact one.

Gaussian data has an exact denoiser, and every table an exact law of x_0. The quantized output is the float one with
k, mu and a white residual planted at every step; the residual takes half of the sampler's variance wherever there is
any. Noise is measured along float sampling, the correction is fitted, and new samples are drawn with other noise.
"""

from functools import cache

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.correction import PTQD, Fingerprint, NoiseStatistics, StepMoments, fit_moments
from ptq_diffusion.main import CONF
from ptq_diffusion.model import GaussianDenoiser
from ptq_diffusion.numeric.seed import SampleNoise, generator
from ptq_diffusion.sampler import DDIM, DDPM, sample

SHAPE, COUNT = (2, 4, 4), 4000
MODEL = GaussianDenoiser(SHAPE, mean=0.4, std=0.5)
MU = torch.tensor([0.1, -0.15]).view(2, 1, 1)
PAPER = {name: value for name, value in OmegaConf.load(CONF / "correction" / "ptqd.yaml").items() if name != "_target_"}
SAMPLERS = {
    "ddim eta 1, 20 steps": DDIM(20, 1.0, {}),
    "ddim eta 1, 50 steps": DDIM(50, 1.0, {}),
    "ddim eta 0.5": DDIM(20, 0.5, {}),
    "ddpm": DDPM(25, {}),
    "ddpm, large variance": DDPM(25, {"variance_type": "fixed_large"}),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


class OneStream(SampleNoise):
    """The noise of a batch from one generator, which is faster than thousands."""

    def __init__(self, seed):
        self._stream = generator("batch", seed)

    def draw(self, device="cpu"):
        return torch.randn(COUNT, *SHAPE, generator=self._stream).to(device)


@cache
def table(name):
    return SAMPLERS[name].table(MODEL.scheduler_config)


def k(step):
    """From -0.25 at t = 900 up to +0.15 at t = 0."""
    return 0.15 - 0.4 * step.t / 900


def v(step):
    """b^2 v / (1 + k)^2 is half of sigma^2."""
    return 0.5 * step.sigma**2 * (1 + k(step)) ** 2 / step.gain**2 if step.sigma > 0 else 1e-4


def exact(x, step):
    return MODEL.predict(x, step).m


def quantized(seed):
    def predict(x, step):
        r = torch.randn(x.shape, generator=generator("residual", seed, step.i))
        return (1 + k(step)) * exact(x, step) + MU + v(step) ** 0.5 * r

    return predict


@cache
def measured(name):
    walk = sample(exact, table(name), OneStream(1))
    moments = [StepMoments.of(visit.m, quantized(1)(visit.x_t, visit.step), visit.x_t) for visit in walk]
    return NoiseStatistics(Fingerprint("planted", table(name).fingerprint(), SHAPE), moments)


def corrected(name, **options):
    """x_0 of the noisy sampler, corrected."""
    found, noisy = fit_moments(PTQD(**PAPER | options), measured(name), table(name)), quantized(2)
    walk = sample(lambda x, step: found.output(noisy(x, step), x, x, step), found.steps, OneStream(2), found.sigma)
    *_, last = walk
    return last.x_s.double()


class Deviation:
    """From a Gaussian law, in standard errors: of every pixel, and of every channel's pixels together."""

    def __init__(self, x, mean, std):
        channels = x.transpose(0, 1).flatten(1)
        self.mean, self.std = self._of(x, mean, std)
        self.channel_mean, self.channel_std = self._of(channels.T, mean, std)
        correlation = x.flatten(1).T.corrcoef() * COUNT**0.5
        self.correlation = correlation - correlation.diagonal().diag()

    def _of(self, x, mean, std):
        error = std / len(x) ** 0.5
        return (x.mean(0) - mean) / error, ((x - mean).square().mean(0) / std**2 - 1) * (len(x) / 2) ** 0.5

    def holds(self):
        """Channels within 3 standard errors; pixels and their correlations, being many, as a whole and within 4.5."""
        many = (self.mean, self.std, self.correlation)
        whole = [float(z.square().mean()) for z in many[:2]]
        return (
            float(self.channel_mean.abs().max()) < 3
            and float(self.channel_std.abs().max()) < 3
            and all(float(z.abs().max()) < 4.5 for z in many)
            and all(0.3 < square < 1.75 for square in whole)
        )


@every_sampler
def test_the_exact_sampler_follows_its_law(name, gaussian_law):
    """What the others are compared with."""
    *_, last = sample(exact, table(name), OneStream(3))
    assert Deviation(last.x_s.double(), *gaussian_law(MODEL, table(name))).holds()


@every_sampler
def test_ptqd_restores_the_law(name, gaussian_law):
    assert Deviation(corrected(name), *gaussian_law(MODEL, table(name))).holds()


@every_sampler
def test_without_correction_the_law_is_another(name, gaussian_law):
    x_0 = corrected(name, correlated=False, bias="off", variance="off")
    found = Deviation(x_0, *gaussian_law(MODEL, table(name)))
    assert not found.holds()
    assert found.channel_mean.abs().min() > 20 and found.channel_std.min() > 20


@every_sampler
@pytest.mark.parametrize(
    ("without", "moved"),
    [
        ({"correlated": False}, "channel_std"),
        ({"bias": "off"}, "channel_mean"),
        ({"variance": "off"}, "channel_std"),
    ],
    ids=["k", "mu", "variance"],
)
def test_every_term_is_needed(name, without, moved, gaussian_law):
    found = Deviation(corrected(name, **without), *gaussian_law(MODEL, table(name)))
    assert getattr(found, moved).abs().min() > 10
    assert not found.holds()


@every_sampler
def test_what_was_planted_is_found(name):
    report = fit_moments(PTQD(**PAPER), measured(name), table(name)).report()
    for found, step in zip(report, table(name), strict=True):
        assert found.k == pytest.approx(k(step), abs=0.02)
        assert found.variance == pytest.approx(v(step), rel=0.02)
        if step.sigma > 0:
            assert found.budget == pytest.approx(0.5, abs=0.03)


def test_without_the_samplers_noise_the_mean_comes_back_and_the_residual_stays(gaussian_law):
    """eta = 0: nothing can absorb the residual. Its variance is that of eta = 1 here, which has no budget now."""
    steps = DDIM(20, 0.0, {}).table(MODEL.scheduler_config)
    walk = sample(exact, steps, OneStream(1))

    def noisy(x, step, seed):
        r = torch.randn(x.shape, generator=generator("residual", seed, step.i))
        return (1 + k(step)) * exact(x, step) + MU + 0.3 * r

    moments = [StepMoments.of(visit.m, noisy(visit.x_t, visit.step, 1), visit.x_t) for visit in walk]
    statistics = NoiseStatistics(Fingerprint("planted", steps.fingerprint(), SHAPE), moments)
    found = fit_moments(PTQD(**PAPER), statistics, steps)
    predict = lambda x, step: found.output(noisy(x, step, 2), x, x, step)  # noqa: E731
    *_, last = sample(predict, found.steps, OneStream(2), found.sigma)
    mean, std = gaussian_law(MODEL, steps)
    deviation = Deviation(last.x_s.double(), mean, std)
    assert deviation.channel_mean.abs().max() < 3.5
    assert deviation.channel_std.min() > 15
