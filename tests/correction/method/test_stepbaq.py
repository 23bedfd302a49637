"""What is particular to StepbaQ: a noisy state is one of an earlier time, and the table starts from there."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.correction import Fingerprint, NoiseStatistics, StepbaQ, StepMoments, fit_moments
from ptq_diffusion.correction.method.stepbaq import time_of
from ptq_diffusion.model import DiffusersDenoiser, GaussianDenoiser
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.sampler import DDIM, DDPM, Process, sample
from ptq_diffusion.sampler.form import step_from
from tests.steps import at

SHAPE, COUNT = (2, 4, 4), 2000
MODEL = GaussianDenoiser(SHAPE, mean=0.4, std=0.5)
MU = torch.tensor([0.05, -0.1]).view(2, 1, 1)
CONFIG = DDPMScheduler(clip_sample=False).config
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
KINDS = ["epsilon", "v_prediction", "sample"]
every_eta = pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])


def noisy(x, step, v, *seed):
    r = torch.randn(x.shape, generator=generator("residual", step.i, *seed))
    return MODEL.predict(x, step).m + MU + v**0.5 * r


def fitted(steps, v, bias=True):
    draws = [torch.randn(COUNT, *SHAPE, generator=generator("states", step.i)) for step in steps]
    moments = [
        StepMoments.of(MODEL.predict(x, step).m, noisy(x, step, v), x) for x, step in zip(draws, steps, strict=True)
    ]
    return fit_moments(
        StepbaQ(bias), NoiseStatistics(Fingerprint("network", steps.fingerprint(), SHAPE), moments), steps
    )


def with_noise(law, steps, v):
    """Mean and standard deviation of x_0 of white noise of variance v in every output, exact."""
    _, std = law(MODEL, steps)
    variance = 0.0
    for step in steps:
        at_zero, at_one = (float(MODEL.predict(torch.tensor(x).double(), step).m) for x in (0.0, 1.0))
        slope = step.carry + step.gain * (at_one - at_zero)
        variance = slope**2 * variance + step.gain**2 * v
    return (std**2 + variance) ** 0.5


@every_eta
@pytest.mark.parametrize("v", [0.001, 0.01, 0.05])
def test_white_noise_leaves_the_law_of_the_float_sampler(eta, v, gaussian_law):
    """Within the standard error of COUNT samples, and far closer than without; the rest is what 50 steps discretize."""
    steps = DDIM(50, eta, {}).table(MODEL.scheduler_config)
    exact = gaussian_law(MODEL, steps)[1]
    before, after = (with_noise(gaussian_law, table, v) for table in (steps, fitted(steps, v).steps))
    assert abs(after - exact) < 0.3 * (before - exact)
    assert abs(after - exact) < exact / (2 * COUNT * math.prod(SHAPE)) ** 0.5


@every_eta
def test_drawn_with_bias_and_noise_the_samples_follow_it(eta, gaussian_law):
    steps, v = DDIM(50, eta, {}).table(MODEL.scheduler_config), 0.05
    mean, std = gaussian_law(MODEL, steps)
    deviations = []
    for bias in (True, False):
        found = fitted(steps, v, bias)

        class OneStream:
            stream = generator("batch", 2)

            def draw(self, device="cpu"):
                return torch.randn(COUNT, *SHAPE, generator=self.stream)

        def predict(x, step, found=found):
            return found.output(noisy(x, step, v, "sampled"), x, x, step)

        *_, last = sample(predict, found.steps, OneStream(), found.sigma)
        error = std / (COUNT * 16) ** 0.5
        x = last.x_s.double()
        deviations.append((x.mean((0, 2, 3)) - mean).abs().max() / error)
        assert (x.std((0, 2, 3)) - std).abs().max() < 4 * error / 2**0.5
    assert deviations[0] < 4 < 20 < deviations[1]


@every_eta
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_steps_back_by_the_error_of_the_one_before(eta, kind):
    steps = DDIM(8, eta, {"prediction_type": kind}).table(CONFIG)
    found = fitted(steps, 0.01)
    assert found.steps[0].t == steps[0].t
    error = 0.0
    for own, given, report in zip(found.steps, steps, found.report(), strict=True):
        assert own.abar_t == pytest.approx(given.abar_t / (1 + error), rel=1e-12)
        start = step_from(given, own.t, Process(own.signal, own.noise, kind))
        error = start.gain**2 * report.variance
        shrink = 1 if given is steps[-1] else (1 + error) ** -0.5
        x, m = torch.randn(2, 3, 4, 4, generator=generator("x", given.i)).double()
        assert torch.allclose(own.mean(x, m), shrink * start.mean(x, m), atol=1e-12)
        assert found.sigma(own) == own.sigma == pytest.approx(shrink * given.sigma)
        assert report.sigma == given.sigma and report.t == given.t


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_from_its_own_time_is_itself(kind):
    for step in DDIM(6, 0.5, {"prediction_type": kind}).table(CONFIG):
        assert step_from(step, step.t, Process(step.signal, step.noise, kind)) == step


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_are_those_of_the_training(schedule):
    scheduler = DDPMScheduler(beta_schedule=schedule)
    steps = DDIM(20, 0.0, {}).table(scheduler.config)
    for step in steps:
        assert time_of(step.abar_t, steps) == pytest.approx(step.t, abs=1e-6)
    found = [time_of(float(scheduler.alphas_cumprod[t]), steps) for t in range(7, 950, 7)]
    assert all(abs(at - t) < 0.5 + 0.01 * t for at, t in zip(found, range(7, 950, 7), strict=True))


def test_a_network_is_told_what_lies_between_two_times(tiny_model_folder):
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    x = torch.randn(2, *model.shape, generator=generator("x"))
    whole, between, after = (model.predict(x, at(t)).m for t in (500, 500.5, 501))
    assert torch.equal(whole, model.predict(x, at(500.0)).m) and torch.equal(whole, model.network(x, 500).sample)
    assert 0 < (between - whole).norm() < (after - whole).norm()
    assert 0 < (after - between).norm() < (after - whole).norm()


def test_samplers_and_errors_without_a_time_are_refused():
    with pytest.raises(ValueError, match="DDIM's form.*use sampler=ddim"):
        StepbaQ(True).check(DDPM(8, {}).table(CONFIG))
    with pytest.raises(ValueError, match="rescale_betas_zero_snr=false"):
        StepbaQ(True).check(
            DDIM(8, 0.0, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}).table(
                DDPMScheduler(prediction_type="v_prediction").config
            )
        )
    steps = DDIM(8, 0.0, {}).table(CONFIG)
    with pytest.raises(ValueError, match="less than a step back to the first time.*raise the number of bits"):
        fitted(steps, 100.0)
    with pytest.raises(ValueError, match="less than a step back"):
        time_of(math.nextafter(steps[0].abar_t, 0), steps)
