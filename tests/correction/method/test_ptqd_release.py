"""Where the authors' released code differs from the paper: named options, each against numbers from the samples."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from omegaconf import OmegaConf

from ptq_diffusion.correction import PTQD, fit_moments
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.sampler import DDIM, DDPM
from tests.correction.planted import (
    CONFIG,
    MU,
    PAPER,
    STEPS,
    centred,
    every_k,
    fitted,
    planted,
    statistics,
    terms_of,
)


def test_a_negative_k_is_raised_to_zero_and_a_positive_one_is_kept():
    assert {terms.k for terms in terms_of(fitted(options={"k_clamp": True}, k=-0.2))} == {0.0}
    for clamped, free in zip(terms_of(fitted(options={"k_clamp": True}, k=0.2)), terms_of(fitted(k=0.2)), strict=True):
        assert clamped.k == free.k > 0.19


@every_k
def test_one_mean_for_all_channels_gives_the_slope_of_all_values(k):
    """Which is another k where channels differ in their offsets."""
    one, own = fitted(options={"centre": "global"}, k=k), fitted(k=k)
    for step, terms in zip(STEPS, terms_of(one), strict=True):
        m, q, _ = planted(step, k=k)
        line = torch.stack([m.flatten(), (q - m).flatten()]).cov()
        assert terms.k == pytest.approx(float(line[0, 1] / line[0, 0]), rel=1e-9)
        assert abs(terms.k - terms_of(own)[step.i].k) > 1e-3
        assert terms.report.variance == pytest.approx(float(centred(q - m - terms.k * m).square().mean()), rel=1e-9)


def test_the_total_bias_is_the_mean_of_the_noise():
    for step, terms in zip(STEPS, terms_of(fitted(options={"bias": "total"})), strict=True):
        m, q, _ = planted(step)
        assert torch.allclose(terms.bias, (q - m).mean((0, 2, 3)), rtol=1e-9)
    total, intercept = (fitted(options={"bias": bias, "correlated": False}) for bias in ("total", "intercept"))
    for a, b in zip(terms_of(total), terms_of(intercept), strict=True):
        assert torch.equal(a.bias, b.bias)


@every_k
def test_mean_std_is_the_squared_mean_of_the_samples_deviations(k):
    for step, terms in zip(STEPS, terms_of(fitted(options={"variance": "mean_std"}, k=k)), strict=True):
        m, q, _ = planted(step, k=k)
        expected = (q - m - terms.k * m).flatten(1).std(1, correction=0).mean().square()
        assert terms.report.variance == pytest.approx(float(expected), rel=1e-9)


@every_k
@pytest.mark.parametrize("mu", [0 * MU, MU, 5 * MU], ids=["no bias", "bias", "more bias"])
def test_mean_std_is_at_most_the_pooled_variance_and_the_spread_of_the_channels(k, mu):
    pair = (terms_of(fitted(options={"variance": variance}, k=k, mu=mu)) for variance in ("mean_std", "pooled"))
    for own, pooled in zip(*pair, strict=True):
        spread = float(pooled.bias.var(correction=0))
        assert own.report.variance < pooled.report.variance + spread
        assert own.report.variance > (pooled.report.variance + spread) * 0.95


def test_a_reduced_direction_changes_its_coefficient_only():
    original, reduced = (fitted(options={"direction": direction}) for direction in ("original", "reduced"))
    assert list(original.steps) == list(STEPS)
    for step, own in zip(STEPS, reduced.steps, strict=True):
        assert original.sigma(step) == reduced.sigma(step)
        rest = step.direction**2 + step.sigma**2  # 1 - abar_s
        coefficient = (rest - reduced.sigma(step) ** 2) ** 0.5 if step.direction else 0.0
        assert own.c_m == pytest.approx(coefficient)
        if 0 < reduced.sigma(step) < step.sigma:
            assert own.c_m / step.c_m == pytest.approx(coefficient / step.direction)
            assert own.c_m > step.c_m
        assert dataclasses.replace(own, c_m=step.c_m, direction=step.direction) == step


def test_a_reduced_direction_needs_a_sampler_that_has_one():
    steps = DDPM(8, {}).table(CONFIG)
    reduced = PTQD(**PAPER | {"direction": "reduced"})
    for use in (lambda: fitted(steps, {"direction": "reduced"}), lambda: reduced.check(steps)):
        with pytest.raises(ValueError, match="direction=reduced needs a DDIM sampler"):
            use()
    reduced.check(STEPS)
    PTQD(**PAPER).check(steps)


def test_one_mean_over_all_channels_mixes_their_offsets_into_k():
    """The planted k is that within channels; offsets of m and D that go together across channels add to it."""
    within, across = fitted(k=0.2), fitted(options={"centre": "global"}, k=0.2)
    assert all(abs(a.k - b.k) > 0.01 for a, b in zip(terms_of(within), terms_of(across), strict=True))


@pytest.mark.parametrize("k", [-0.2, 0.2])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_release_by_hand(k, eta):
    """One step of its sampler, from the samples alone: correct, fuse, then point in the direction that is left."""
    steps = DDIM(8, eta, {}).table(CONFIG)
    release = construct(OmegaConf.load(CONF / "correction" / "ptqd_release.yaml"))
    found = fit_moments(release, statistics(steps, k=k), steps)
    abar = DDPMScheduler().alphas_cumprod.double()
    for step, own in zip(steps, found.steps, strict=True):
        m, q, x = planted(step, k=k)
        noise = q - m
        line = torch.stack([m.flatten(), noise.flatten()]).cov()
        slope = max(float(line[0, 1] / line[0, 0]), 0)
        std_q = float((noise - slope * m).flatten(1).std(1, correction=0).mean())
        epsilon = (q - noise.mean((0, 2, 3), keepdim=True)) / (1 + slope)
        at, a_s = abar[step.t], abar[step.t - 125] if step.t >= 125 else torch.tensor(1.0).double()
        sigma2 = eta**2 * (1 - a_s) / (1 - at) * (1 - at / a_s)
        x_0 = (x - (1 - at).sqrt() * epsilon) / at.sqrt()
        b = (1 - a_s - sigma2).clamp(min=0).sqrt() - (a_s * (1 - at) / at).sqrt()
        left = sigma2 - (b * std_q / (1 + slope)) ** 2
        sigma2 = left.clamp(min=0)
        expected = a_s.sqrt() * x_0 + (1 - a_s - sigma2).clamp(min=0).sqrt() * epsilon
        assert torch.allclose(own.mean(x, found.output(q, x, x, own)), expected, rtol=1e-7, atol=1e-7)
        assert found.sigma(own) == pytest.approx(float(sigma2) ** 0.5, rel=1e-7)
