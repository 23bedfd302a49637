"""PTQD's identities: what it takes apart, what it puts back, and what each term does alone."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from omegaconf import OmegaConf

from ptq_diffusion.correction import PTQD, Fingerprint, NoCorrection, NoiseStatistics, StepMoments
from ptq_diffusion.main import CONF
from ptq_diffusion.sampler import DDIM, DDPM
from ptq_diffusion.sampler.step import fingerprint
from ptq_diffusion.stage.factory import construct

SHAPE = (3, 6, 5)
CONFIG = DDPMScheduler(clip_sample=False).config
STEPS = DDIM(8, 1.0, {}).steps(CONFIG)
PAPER = {name: value for name, value in OmegaConf.load(CONF / "correction" / "ptqd.yaml").items() if name != "_target_"}
OFFSETS = torch.tensor([0.8, -0.5, 0.3]).double().view(3, 1, 1)  # E[m_c], far from 0
MU = torch.tensor([0.10, -0.04, 0.02]).double().view(3, 1, 1)


def planted(step, k=-0.1, v=0.01, mu=MU, count=50):
    """m, q = (1 + k) m + mu + r and x_t in float64; r is white of variance v."""
    m, r, x = torch.randn(3, count, *SHAPE, generator=torch.Generator().manual_seed(step.i)).double()
    m = m * torch.tensor([1.0, 0.5, 2.0]).double().view(3, 1, 1) + OFFSETS
    return m, (1 + k) * m + mu + v**0.5 * r, x


def statistics(steps, **noise):
    moments = [StepMoments.of(*planted(step, **noise)) for step in steps]
    return NoiseStatistics(Fingerprint("network", fingerprint(steps), SHAPE), moments)


def fitted(steps=STEPS, options=None, **noise):
    return PTQD(**PAPER | (options or {})).fit(statistics(steps, **noise), steps)


def terms_of(found):
    """k, the bias per channel and the report of every step."""
    affine = [step.repairs[0] for step in found.found]
    return [
        SimpleNamespace(k=float(own.k), bias=own.bias, report=report)
        for own, report in zip(affine, found.report(), strict=True)
    ]


def centred(x):
    return x - x.mean((0, 2, 3), keepdim=True)


every_k = pytest.mark.parametrize("k", [-0.3, -0.05, 0.0, 0.2])


# What the fit finds.


@every_k
def test_the_residual_is_uncorrelated_with_the_float_output(k):
    for step, terms in zip(STEPS, terms_of(fitted(k=k)), strict=True):
        m, q, _ = planted(step, k=k)
        residual = q - m - terms.k * m - terms.bias.view(3, 1, 1)
        spread = (centred(residual).square().mean() * centred(m).square().mean()).sqrt()
        assert abs((centred(residual) * centred(m)).mean()) < 1e-12 * spread
        assert residual.mean((0, 2, 3)).abs().max() < 1e-12
        assert terms.report.variance == pytest.approx(float(residual.square().mean()), rel=1e-9)


@every_k
def test_the_mean_error_is_zero_in_every_channel(k):
    found = fitted(k=k)
    for step in STEPS:
        m, q, x = planted(step, k=k)
        assert (found.output(q, x, x, step) - m).mean((0, 2, 3)).abs().max() < 1e-12


@every_k
@pytest.mark.parametrize("v", [0.0, 0.01, 0.2])
def test_planted_noise_is_recovered_within_its_standard_errors(k, v):
    for step, terms in zip(STEPS, terms_of(fitted(k=k, v=v, count=400)), strict=True):
        m, _, _ = planted(step, count=400)
        error_k = (v / centred(m).square().sum()) ** 0.5
        assert abs(terms.k - k) <= 3 * error_k + 1e-12
        error_mu = (v / (m.numel() / 3) + (m.mean((0, 2, 3)) * error_k).square()) ** 0.5
        assert ((terms.bias - MU.flatten()).abs() <= 3 * error_mu + 1e-12).all()
        assert abs(terms.report.variance - v) <= 3 * v * (2 / m.numel()) ** 0.5 + 1e-12


def test_offsets_of_channels_do_not_leak_into_k():
    """One mean for all channels would see a correlation between E[m_c] and E[D_c] where within channels is none."""
    for terms in terms_of(fitted(k=0.0, mu=5 * OFFSETS, count=400)):
        assert abs(terms.k) < 0.01


def test_the_correction_is_the_inverse_of_what_was_planted():
    found = fitted(k=0.2, v=0.0)
    for step in STEPS:
        m, q, x = planted(step, k=0.2, v=0.0)
        assert torch.allclose(found.output(q, x, x, step), m, rtol=1e-9, atol=1e-9)
        assert found.report()[step.i].r2 == pytest.approx(1, abs=1e-9)


def test_terms_belong_to_their_step():
    """k differs from step to step, and every step is corrected by its own."""
    moments = [StepMoments.of(*planted(step, k=-0.02 * step.i, v=0.0)) for step in STEPS]
    found = PTQD(**PAPER).fit(NoiseStatistics(Fingerprint("n", fingerprint(STEPS), SHAPE), moments), STEPS)
    for step in STEPS:
        m, q, x = planted(step, k=-0.02 * step.i, v=0.0)
        assert terms_of(found)[step.i].k == pytest.approx(-0.02 * step.i, abs=1e-9)
        assert torch.allclose(found.output(q, x, x, step), m, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"bias": "off"}, {"correlated": False}, {"bias": "total", "k_clamp": True}], ids=str
)
def test_r2_is_the_share_of_the_noise_that_is_explained(options):
    for step, terms in zip(STEPS, terms_of(fitted(options=options)), strict=True):
        m, q, _ = planted(step)
        left = q - m - terms.k * m - terms.bias.view(3, 1, 1)
        assert terms.report.r2 == pytest.approx(float(1 - left.square().mean() / (q - m).square().mean()), rel=1e-9)
        assert terms.report.bias == pytest.approx(float(terms.bias.square().mean().sqrt()))


# The variance schedule.


@every_k
@pytest.mark.parametrize("sampler", [DDIM(8, 1.0, {}), DDIM(8, 0.5, {}), DDPM(8, {})], ids=["eta 1", "eta 0.5", "ddpm"])
def test_noise_and_residual_add_up_to_the_samplers_variance(k, sampler):
    steps = sampler.steps(CONFIG)
    found, feasible = fitted(steps, k=k), 0
    for step, terms in zip(steps, terms_of(found), strict=True):
        left = step.gain**2 * terms.report.variance / (1 + terms.k) ** 2
        if step.sigma == 0:
            assert terms.report.budget is None and found.sigma(step) == 0
        elif left <= step.sigma**2:
            feasible += 1
            assert found.sigma(step) ** 2 + left == pytest.approx(step.sigma**2, rel=1e-12)
            assert terms.report.budget == pytest.approx(left / step.sigma**2) and terms.report.budget <= 1
        else:
            assert found.sigma(step) == 0 and terms.report.budget > 1
    assert feasible >= 5


def test_what_does_not_fit_is_reported():
    found = fitted(v=4.0)
    noisy = [step for step in STEPS if step.sigma > 0]
    infeasible = [step for step in noisy if found.report()[step.i].budget > 1]
    assert infeasible
    for step in infeasible:
        assert found.sigma(step) == 0
    for step in set(noisy) - set(infeasible):
        assert 0 < found.sigma(step) < step.sigma


def test_without_the_samplers_noise_the_variance_term_is_inert():
    steps = DDIM(8, 0.0, {}).steps(CONFIG)
    on, off = (fitted(steps, {"variance": variance}) for variance in ("pooled", "off"))
    for step in steps:
        assert on.sigma(step) == off.sigma(step) == 0
        _, q, x = planted(step)
        assert torch.equal(on.output(q, x, x, step), off.output(q, x, x, step))
        assert on.report()[step.i].budget is None


def test_the_gain_is_that_of_the_unclipped_original_step():
    clipped = DDIM(8, 1.0, {"clip_sample": True}).steps(CONFIG)
    a, b = fitted(STEPS), fitted(clipped)
    assert [a.sigma(step) for step in STEPS] == [b.sigma(step) for step in clipped]


# Each term alone.


@pytest.mark.parametrize("correlated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variance", [True, False])
def test_a_switch_switches_its_term_only(correlated, bias, variance):
    """All eight combinations, each against numbers taken from the samples."""
    options = {
        "correlated": correlated,
        "bias": "intercept" if bias else "off",
        "variance": "pooled" if variance else "off",
    }
    found = fitted(options=options)
    assert list(found.steps) == list(STEPS)
    for step, terms in zip(STEPS, terms_of(found), strict=True):
        m, q, x = planted(step)
        noise = q - m
        k = float((centred(noise) * centred(m)).mean() / centred(m).square().mean()) if correlated else 0.0
        mu = (noise - k * m).mean((0, 2, 3)) if bias else torch.zeros(3).double()
        v = float(centred(noise - k * m).square().mean())
        assert terms.k == pytest.approx(k, rel=1e-9)
        assert torch.allclose(terms.bias, mu, rtol=1e-9)
        assert terms.report.variance == pytest.approx(v, rel=1e-9)
        assert torch.allclose(found.output(q, x, x, step), (q - mu.view(3, 1, 1)) / (1 + k), rtol=1e-9)
        reduced = max(step.sigma**2 - step.gain**2 * v / (1 + k) ** 2, 0) ** 0.5
        assert found.sigma(step) == pytest.approx(reduced if variance else step.sigma, rel=1e-9)
        assert (found.sigma(step) < step.sigma) == (variance and step.sigma > 0)


def test_with_all_terms_off_it_is_no_correction():
    off = fitted(options={"correlated": False, "bias": "off", "variance": "off"})
    none = NoCorrection().fit(statistics(STEPS), STEPS)
    assert list(none.report()) == list(off.report())
    for step in STEPS:
        _, q, x = planted(step)
        assert torch.equal(off.output(q, x, x, step), q) and torch.equal(none.output(q, x, x, step), q)
        assert off.sigma(step) == none.sigma(step) == step.sigma


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("ptqd", {"correlated", "bias", "variance"}),
        ("correlated", {"correlated"}),
        ("bias", {"bias"}),
        ("variance", {"variance"}),
        ("none", set()),
    ],
)
def test_presets_act_as_they_are_called(name, terms):
    found = construct(OmegaConf.load(CONF / "correction" / f"{name}.yaml")).fit(statistics(STEPS), STEPS)
    for step in STEPS[:-1]:
        _, q, x = planted(step)
        output = found.output(q, x, x, step)
        assert not torch.equal(output, q) or not terms & {"correlated", "bias"}
        if "correlated" not in terms:
            assert torch.allclose((output - q).std((0, 2, 3)), torch.zeros(3).double(), atol=1e-9)
            assert bool((output - q).abs().max() > 0.01) == ("bias" in terms)
        assert (found.sigma(step) < step.sigma) == ("variance" in terms)


# What the release does.


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
    steps = DDPM(8, {}).steps(CONFIG)
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
    steps = DDIM(8, eta, {}).steps(CONFIG)
    found = construct(OmegaConf.load(CONF / "correction" / "ptqd_release.yaml")).fit(statistics(steps, k=k), steps)
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


# What is refused.


def test_an_output_that_points_the_other_way_is_refused():
    with pytest.raises(ValueError, match=r"expected 1 \+ k > 0, at t = 875 k = -1.5"):
        fitted(k=-1.5)


def test_a_constant_float_output_is_refused_where_k_is_needed():
    steps = STEPS[:1]
    m = torch.ones(4, *SHAPE)
    q = m + torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    constant = NoiseStatistics(Fingerprint("n", fingerprint(steps), SHAPE), [StepMoments.of(m, q, q)])
    with pytest.raises(ValueError, match="at t = 875 it is constant"):
        PTQD(**PAPER).fit(constant, steps)
    assert terms_of(PTQD(**PAPER | {"correlated": False}).fit(constant, steps))[0].k == 0


@pytest.mark.parametrize("option", ["bias", "variance", "centre", "direction"])
def test_options_that_do_not_exist_are_refused(option):
    with pytest.raises(ValueError, match=f"expected {option} to be one of .*, got 'both'"):
        PTQD(**PAPER | {option: "both"})
