"""What is particular to D2-DPM and to TAC."""

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.correction import (
    D2DPM,
    TAC,
    Fingerprint,
    MomentEvidence,
    NoiseStatistics,
    PairedBatch,
    PathEvidence,
    StepMoments,
    fit_moments,
)
from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.sampler import DDIM

SHAPE = (3, 6, 5)
CONFIG = DDPMScheduler(clip_sample=False).config
STEPS = DDIM(8, 1.0, {}).table(CONFIG)
MU = torch.tensor([0.10, -0.04, 0.02]).double().view(3, 1, 1)


def planted(step, k=-0.1, v=0.05, count=60):
    """m, q = (1 + k) m + mu + r and x_t; images differ in their strength."""
    m, r, x = torch.randn(3, count, *SHAPE, generator=torch.Generator().manual_seed(step.i)).double()
    m = m * torch.linspace(0.3, 2.0, count).view(-1, 1, 1, 1) + 0.4
    return m, (1 + k) * m + MU + v**0.5 * r, x


def d2dpm(variant, steps=STEPS, **noise):
    moments = [StepMoments.of(*planted(step, **noise)) for step in steps]
    return fit_moments(D2DPM(variant), NoiseStatistics(Fingerprint("n", steps.fingerprint(), SHAPE), moments), steps)


def centred(x):
    return x - x.mean((0, 2, 3), keepdim=True)


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.2])
def test_d2dpm_leaves_nothing_that_the_quantized_output_predicts(k):
    found = d2dpm("deterministic", k=k)
    for step in STEPS:
        m, q, x = planted(step, k=k)
        left = found.output(q, x, x, step) - m
        assert left.mean((0, 2, 3)).abs().max() < 1e-12
        assert abs(float((left * centred(q)).mean())) < 1e-9
        v = float(left.square().mean())
        assert found.report()[step.i].variance == pytest.approx(v, rel=1e-9)
        assert found.sigma(step) ** 2 == pytest.approx(max(step.sigma**2 - step.gain**2 * v, 0), abs=1e-12)


def test_a_sample_of_the_noise_adds_the_variance_that_its_mean_takes_off():
    mean, sampled = d2dpm("deterministic", v=0.001), d2dpm("stochastic", v=0.001)
    for step in STEPS:
        _, q, x = planted(step, v=0.001)
        assert torch.equal(mean.output(q, x, x, step), sampled.output(q, x, x, step))
        if mean.sigma(step) > 0:
            assert mean.sigma(step) ** 2 + sampled.sigma(step) ** 2 == pytest.approx(2 * step.sigma**2)
    at_zero = DDIM(8, 0.0, {}).table(CONFIG)
    assert all(d2dpm("deterministic", at_zero).sigma(step) == 0 for step in at_zero)
    assert all(d2dpm("stochastic", at_zero).sigma(step) > 0 for step in at_zero[:-1])


def batches(step, drift):
    m, q, x = planted(step)
    parts = [slice(0, 17), slice(17, None)]
    return PathEvidence([PairedBatch(p.start, q[p], x[p] + drift, q[p], m[p], x[p], m[p]) for p in parts])


@pytest.mark.parametrize("relative", [0.0, 1.0, 10.0])
def test_tacs_gain_is_the_minimum_of_its_loss(relative):
    step = STEPS[2]
    m, q, _ = planted(step)
    repair = TAC(relative, input_bias=False).fit_step(batches(step, 0.0), step).repairs[0]
    gain = 1 / (1 + float(repair.k))
    power = m.square().flatten(1).sum(1)

    def loss(k):
        return float(((k * q - m).square().flatten(1).sum(1) * (1 + relative * power.mean() / power)).sum())

    assert loss(gain) < min(loss(gain * 1.001), loss(gain / 1.001))
    assert (repair.bias == 0).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_tac_brings_the_mean_of_the_next_state_back(eta):
    step = DDIM(8, eta, {}).table(CONFIG)[2]
    m, q, x = planted(step)
    drift = torch.tensor([0.3, -0.2, 0.1]).double().view(3, 1, 1)
    expected = step.mean(x, m).mean((0, 2, 3))
    with_bias, without = (TAC(1.0, bias).fit_step(batches(step, drift), step) for bias in (True, False))
    means = [step.mean(x + drift, found.output(q, x + drift, q)).mean((0, 2, 3)) for found in (with_bias, without)]
    assert torch.allclose(means[0], expected, atol=1e-12)
    assert (means[1] - expected).abs().max() > 0.01


@pytest.mark.parametrize("i", range(8))
def test_tacs_offset_moves_no_mean_away_where_x_0_is_clipped(i):
    """At the first steps, where most of x_0 is, the offset of the affine step would."""
    step = DDIM(8, 0.0, {}).table(DDPMScheduler(clip_sample=True).config)[i]
    m, q, x = planted(step)
    drift = torch.tensor([0.3, -0.2, 0.1]).double().view(3, 1, 1)
    expected = step.mean(x, m).mean((0, 2, 3))
    with_bias, without = (TAC(1.0, bias).fit_step(batches(step, drift), step) for bias in (True, False))
    moved = [(step.mean(x + drift, f.output(q, x + drift, q)).mean((0, 2, 3)) - expected) for f in (with_bias, without)]
    assert (moved[0].abs() <= moved[1].abs()).all()
    if i == 0:
        affine = without.output(q, x + drift, q) - (moved[1] / step.gain).view(3, 1, 1)
        assert ((step.mean(x + drift, affine).mean((0, 2, 3)) - expected).abs() > moved[1].abs()).any()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="expected variant to be deterministic or stochastic"):
        D2DPM("mean")
    with pytest.raises(ValueError, match="relative to be at least 0"):
        TAC(-1.0, True)
    m, _, x = planted(STEPS[0])
    opposite = PathEvidence([PairedBatch(0, -m, x, x, m, x, m)])
    with pytest.raises(ValueError, match="expected a positive gain, at t = 875"):
        TAC(1.0, True).fit_step(opposite, STEPS[0])
    with pytest.raises(ValueError, match="expected beta < 1, at t = 875"):
        d2dpm("deterministic", k=-1.2)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_more_bits_are_no_remedy_for_a_float_output_without_signal(level):
    m, x = torch.full((6, *SHAPE), level), torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    constant = NoiseStatistics(Fingerprint("n", STEPS[:1].fingerprint(), SHAPE), [StepMoments.of(m, m + x, x)])
    with pytest.raises(ValueError, match="float output that varies, at t = 875 it is constant.*correction=none"):
        fit_moments(D2DPM("deterministic"), constant, STEPS[:1])
    if level == 0:
        with pytest.raises(ValueError, match="not zero, at t = 875 it is zero for 6 of 6 images.*correction=none"):
            TAC(1.0, True).fit_step(PathEvidence([PairedBatch(0, m + x, x, x, m, x, m)]), STEPS[0])


def test_an_output_without_signal_is_refused_by_d2dpm():
    """q = m + D with Cov(D, m) = -Var m, exactly: beta is 1, and 1 - beta divides nothing."""
    scatter = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]).double()
    moments = StepMoments(Moments(1, torch.zeros(3).double(), scatter), torch.zeros(0, 3).double())
    with pytest.raises(ValueError, match=r"expected beta < 1, at t = 875 it is 1\.000.*holds no signal"):
        D2DPM("deterministic").fit_step(MomentEvidence(moments), STEPS[0])
