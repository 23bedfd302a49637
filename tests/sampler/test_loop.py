"""The one loop: its noise, its order, its end; and Gaussian data, whose samples have a known law."""

import dataclasses
import math

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.model import GaussianDenoiser
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler import DDIM, DDPM, Visit, sample
from tests.steps import at

SHAPE = (1, 3, 3)
MEAN, STD = 0.4, 0.5
GAUSSIAN = GaussianDenoiser(SHAPE, MEAN, STD)
SAMPLERS = {
    "ddim, eta 0": lambda count: DDIM(count, 0.0, {}),
    "ddim, eta 0.5": lambda count: DDIM(count, 0.5, {}),
    "ddim, eta 1": lambda count: DDIM(count, 1.0, {}),
    "ddpm": lambda count: DDPM(count, {}),
}
every_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())


def predict(x, step):
    return GAUSSIAN.predict(x, step).m


def walk(steps, indices=range(4), **options):
    return list(sample(predict, steps, SampleNoise(0, indices, SHAPE), **options))


@every_sampler
def test_every_visit_is_its_step(make):
    steps = make(10).table(GAUSSIAN.scheduler_config)
    visits, noise = walk(steps), SampleNoise(0, range(4), SHAPE)
    state = noise.draw()
    assert [visit.step for visit in visits] == list(steps)
    for visit in visits:
        assert torch.equal(visit.x_t, state)
        assert torch.equal(visit.m, predict(state, visit.step))
        state = visit.step.mean(state, visit.m) + visit.step.sigma * noise.draw()
        assert torch.equal(visit.x_s, state)


def test_noise_is_drawn_where_sigma_is_zero_too():
    """So that a sampler or a correction that adds none leaves the later noise as it is."""
    steps = DDIM(10, 1.0, {}).table(GAUSSIAN.scheduler_config)
    silent = steps.with_steps(dataclasses.replace(step, sigma=0.0) if step.i < 5 else step for step in steps)
    noise, other = SampleNoise(0, range(4), SHAPE), SampleNoise(0, range(4), SHAPE)
    list(sample(predict, steps, noise))
    list(sample(predict, silent, other))
    assert torch.equal(noise.draw(), other.draw())


def test_another_sigma_replaces_the_tables():
    steps = DDIM(10, 1.0, {}).table(GAUSSIAN.scheduler_config)
    halved = steps.with_steps(dataclasses.replace(step, sigma=step.sigma / 2) for step in steps)
    given = walk(steps, sigma=lambda step, _: step.sigma / 2)
    for a, b in zip(given, walk(halved), strict=True):
        assert torch.equal(a.x_s, b.x_s)


@every_sampler
def test_samples_do_not_depend_on_their_batch(make):
    steps = make(7).table(GAUSSIAN.scheduler_config)
    whole = walk(steps, range(6))[-1].x_s
    for indices in ([4], [5, 0], [1, 2, 3]):
        assert torch.equal(walk(steps, indices)[-1].x_s, whole[indices])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_that_is_not_finite_stops_the_walk_and_names_the_step(bad):
    steps = DDIM(10, 1.0, {}).table(GAUSSIAN.scheduler_config)

    def broken(x, step):
        return torch.where(torch.arange(9).view(SHAPE) == 4, bad, x) if step.i == 3 else x

    with pytest.raises(FloatingPointError, match=r"step 3 \(t = 600\)"):
        list(sample(broken, steps, SampleNoise(0, range(2), SHAPE)))


def test_visits_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Visit(None, None, None, None).m = 0


@every_sampler
def test_more_steps_come_closer_to_the_data(make, gaussian_law):
    config = GAUSSIAN.scheduler_config
    laws = [gaussian_law(GAUSSIAN, make(count).table(config)) for count in (5, 10, 20, 50, 100, 200, 500, 1000)]
    for index, truth in enumerate((MEAN, STD)):
        errors = [abs(found[index] - truth) for found in laws]
        assert errors == sorted(errors, reverse=True)
    # What is left at 1000 steps is the start, which is not quite standard normal, and the smaller of two variances.
    assert laws[-1] == pytest.approx((MEAN, STD), abs=0.005)


@every_sampler
@pytest.mark.parametrize("count", [5, 50])
def test_samples_follow_the_law_of_the_table(make, count, gaussian_law):
    steps = make(count).table(GAUSSIAN.scheduler_config)
    *_, last = sample(predict, steps, SampleNoise(1, range(2000), SHAPE))
    mean, std = gaussian_law(GAUSSIAN, steps)
    values = last.x_s.double()
    assert abs(values.mean() - mean) < 4 * std / values.numel() ** 0.5
    assert abs(values.std() - std) < 4 * std / (2 * values.numel()) ** 0.5


def test_the_gaussian_denoiser_is_the_best_linear_predictor():
    """E[epsilon | x_t] by regression on samples, at several times."""
    draw = torch.Generator().manual_seed(0)
    x_0, epsilon = torch.randn(2, 200_000, generator=draw).double()
    x_0 = MEAN + STD * x_0
    abar = DDPMScheduler().alphas_cumprod.double()
    for t in (10, 300, 900):
        x_t = abar[t].sqrt() * x_0 + (1 - abar[t]).sqrt() * epsilon
        slope = torch.stack([x_t, epsilon]).cov()[0, 1] / x_t.var()
        at_zero, at_one = (float(GAUSSIAN.predict(torch.tensor(x).double(), at(t)).m) for x in (0.0, 1.0))
        assert at_one - at_zero == pytest.approx(float(slope), abs=0.01)
        assert at_zero == pytest.approx(float(epsilon.mean() - slope * x_t.mean()), abs=0.01)
