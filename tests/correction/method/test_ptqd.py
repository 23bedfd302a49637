"""PTQD's identities: what it takes apart, what it puts back, and what each term does alone."""

import pytest
import torch
from omegaconf import OmegaConf

from ptq_diffusion.correction import PTQD, Fingerprint, NoCorrection, NoiseStatistics, StepMoments, fit_moments
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.sampler import DDIM, DDPM
from tests.correction.planted import (
    CONFIG,
    MU,
    OFFSETS,
    PAPER,
    SHAPE,
    STEPS,
    centred,
    every_k,
    fitted,
    planted,
    statistics,
    terms_of,
)

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
    found = fit_moments(PTQD(**PAPER), NoiseStatistics(Fingerprint("n", STEPS.fingerprint(), SHAPE), moments), STEPS)
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


@pytest.mark.parametrize("options", [{}, {"bias": "off"}, {"correlated": False}, {"correlated": False, "bias": "off"}])
def test_the_report_of_a_term_that_is_off_is_of_the_noise_itself(options):
    for step, terms in zip(STEPS, terms_of(fitted(options=options, k=-0.1)), strict=True):
        m, q, _ = planted(step, k=-0.1)
        k = float((centred(q - m) * centred(m)).mean() / centred(m).square().mean())
        assert terms.report.k == pytest.approx(k, rel=1e-9) and terms.k in (terms.report.k, 0.0)
        slope = 0.0 if options == {"correlated": False} else k  # the bias in use is that beside the k in use
        bias = (q - m - slope * m).mean((0, 2, 3))
        assert terms.report.bias == pytest.approx(float(bias.square().mean().sqrt()), rel=1e-9)


# The variance schedule.


@every_k
@pytest.mark.parametrize("sampler", [DDIM(8, 1.0, {}), DDIM(8, 0.5, {}), DDPM(8, {})], ids=["eta 1", "eta 0.5", "ddpm"])
def test_noise_and_residual_add_up_to_the_samplers_variance(k, sampler):
    steps = sampler.table(CONFIG)
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
    steps = DDIM(8, 0.0, {}).table(CONFIG)
    on, off = (fitted(steps, {"variance": variance}) for variance in ("pooled", "off"))
    for step in steps:
        assert on.sigma(step) == off.sigma(step) == 0
        _, q, x = planted(step)
        assert torch.equal(on.output(q, x, x, step), off.output(q, x, x, step))
        assert on.report()[step.i].budget is None


def test_the_gain_is_that_of_the_unclipped_original_step():
    clipped = DDIM(8, 1.0, {"clip_sample": True}).table(CONFIG)
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
    none = fit_moments(NoCorrection(), statistics(STEPS), STEPS)
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
    correction = construct(OmegaConf.load(CONF / "correction" / f"{name}.yaml"))
    found = fit_moments(correction, statistics(STEPS), STEPS)
    for step in STEPS[:-1]:
        _, q, x = planted(step)
        output = found.output(q, x, x, step)
        assert not torch.equal(output, q) or not terms & {"correlated", "bias"}
        if "correlated" not in terms:
            assert torch.allclose((output - q).std((0, 2, 3)), torch.zeros(3).double(), atol=1e-9)
            assert bool((output - q).abs().max() > 0.01) == ("bias" in terms)
        assert (found.sigma(step) < step.sigma) == ("variance" in terms)


# What is refused.


def test_an_output_that_points_the_other_way_is_refused():
    with pytest.raises(ValueError, match=r"expected 1 \+ k > 0, at t = 875 k = -1.5"):
        fitted(k=-1.5)


def test_a_constant_float_output_is_refused_where_k_is_needed():
    steps = STEPS[:1]
    m = torch.ones(4, *SHAPE)
    q = m + torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    constant = NoiseStatistics(Fingerprint("n", steps.fingerprint(), SHAPE), [StepMoments.of(m, q, q)])
    with pytest.raises(ValueError, match="at t = 875 it is constant"):
        fit_moments(PTQD(**PAPER), constant, steps)
    assert terms_of(fit_moments(PTQD(**PAPER | {"correlated": False}), constant, steps))[0].k == 0


@pytest.mark.parametrize("option", ["bias", "variance", "centre", "direction"])
def test_options_that_do_not_exist_are_refused(option):
    with pytest.raises(ValueError, match=f"expected {option} to be one of .*, got 'both'"):
        PTQD(**PAPER | {option: "both"})
