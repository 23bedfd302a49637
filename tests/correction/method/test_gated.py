"""Each of PTQD's terms is used exactly where held-out images gain from it."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.correction import PTQD, Fingerprint, GatedPTQD, NoiseStatistics, StepMoments, fit_moments
from ptq_diffusion.numeric.moments import Moments
from ptq_diffusion.sampler import DDIM, DPMSolver
from tests.correction.presets import CORRECTIONS

SHAPE, COUNT = (2, 6, 6), 200
STEPS_CONFIG = dict(DDPMScheduler(clip_sample=False).config)
STEPS = DDIM(4, 1.0, {}).table(STEPS_CONFIG)
ALL = PTQD(correlated=True, bias="intercept", variance="pooled", centre="channel", k_clamp=False, direction="original")


def statistics(k, mu, noise, count=COUNT):
    def seen():
        for step in STEPS:
            m, r, x = torch.randn(3, count, *SHAPE, generator=torch.Generator().manual_seed(step.i))
            # m depends on no state, so that the residual's variance is what PTQD takes it for.
            yield m + 0.5, (1 + k) * (m + 0.5) + mu + noise * r, x

    return NoiseStatistics.of(Fingerprint("network", STEPS.fingerprint(), SHAPE), seen(), first=0)


@pytest.mark.parametrize(("k", "mu"), [(0.2, 0.3), (0.2, 0.0), (0.0, 0.3), (-0.2, 0.3), (0.0, 0.0)])
def test_planted_terms_are_used_and_others_are_left(k, mu):
    found = fit_moments(GatedPTQD(), statistics(k, mu, noise=0.05), STEPS).corrections
    for step in found:
        (repair,) = step.repairs
        assert (abs(float(repair.k)) > 0.01) == (k != 0)
        assert (float(repair.bias.abs().max()) > 0.05) == (mu != 0)


def test_a_step_whose_variance_depends_on_the_step_before_keeps_its_noise():
    """Of a multistep sampler, whose first step reads no earlier prediction and may give noise away."""
    steps = DPMSolver(4, 2, sde=True).table(STEPS_CONFIG)
    seen = (torch.randn(3, COUNT, *SHAPE, generator=torch.Generator().manual_seed(step.i)) for step in steps)
    owner = Fingerprint("network", steps.fingerprint(), SHAPE)
    noisy = NoiseStatistics.of(owner, ((m, m + 0.2 * r, x) for m, r, x in seen), first=0)
    found = fit_moments(GatedPTQD(), noisy, steps).corrections
    later = [one.sigma == step.sigma for one, step in zip(found, steps, strict=True) if any(step.c_0[1:])]
    assert later and all(later) and found[0].sigma < steps[0].sigma


def halves(even, odd):
    """Images of even and of odd index whose noise is (k, mu, the deviation of what is left)."""
    rows = torch.tensor([even, odd] * (COUNT // 2)).T.reshape(3, COUNT, 1, 1, 1)

    def seen():
        for step in STEPS:
            m, r, x = torch.randn(3, COUNT, *SHAPE, generator=torch.Generator().manual_seed(step.i))
            yield m, (1 + rows[0]) * m + rows[1] + rows[2] * r, x

    return NoiseStatistics.of(Fingerprint("network", STEPS.fingerprint(), SHAPE), seen(), first=0)


CONTRADICTING = {
    "k": ((0.2, 0.0, 0.05), (-0.2, 0.0, 0.05)),
    "k that one half alone gains from": ((-0.1, 0.0, 0.05), (-0.4, 0.0, 0.05)),
    "mu": ((0.0, 0.3, 0.05), (0.0, -0.3, 0.05)),
    "mu that one half alone gains from": ((0.0, 0.1, 0.05), (0.0, 0.4, 0.05)),
    "variance": ((0.0, 0.0, 0.1), (0.0, 0.0, 0.01)),
}


@pytest.mark.parametrize("name", CONTRADICTING)
def test_what_each_half_finds_and_the_other_does_not_is_left(name):
    found = fit_moments(GatedPTQD(), halves(*CONTRADICTING[name]), STEPS).corrections
    for own, step in zip(found, STEPS, strict=True):
        (repair,) = own.repairs
        if name.startswith("k"):
            assert float(repair.k) == 0
        elif name.startswith("mu"):
            assert float(repair.bias.abs().max()) == 0
        elif step.sigma**2 > 0.01 * step.gain**2:  # elsewhere no variance is left to absorb either half's residual
            assert own.sigma == step.sigma


def test_with_every_term_it_is_ptqd():
    measured = statistics(0.2, 0.3, noise=0.3)
    gated, plain = (fit_moments(correction, measured, STEPS).corrections for correction in (GatedPTQD(), ALL))
    for own, other in zip(gated, plain, strict=True):
        assert torch.equal(own.repairs[0].k, other.repairs[0].k)
        assert torch.equal(own.repairs[0].bias, other.repairs[0].bias)
        assert own.sigma == other.sigma
    assert any(own.sigma < step.sigma for own, step in zip(gated, STEPS, strict=True))


def test_the_schedule_is_left_where_the_next_state_varies_too_little_already():
    """Noise along x_t that takes variance from the next state: PTQD would take more of it away."""

    def seen():
        for step in STEPS:
            m, x = torch.randn(2, COUNT, *SHAPE, generator=torch.Generator().manual_seed(step.i))
            carried = step.carry
            yield m, m - 0.2 * carried / step.gain * x, x

    measured = NoiseStatistics.of(Fingerprint("network", STEPS.fingerprint(), SHAPE), seen(), first=0)
    gated, plain = (fit_moments(correction, measured, STEPS).corrections for correction in (GatedPTQD(), ALL))
    assert [own.sigma for own in gated] == [step.sigma for step in STEPS]
    assert any(other.sigma < step.sigma for other, step in zip(plain, STEPS, strict=True))


def test_a_k_that_cannot_be_used_is_not():
    (first, *_) = found = fit_moments(GatedPTQD(), statistics(-1.5, 0.0, noise=0.05), STEPS).corrections
    assert len(found) == len(STEPS) and float(first.repairs[0].k) == 0
    with pytest.raises(ValueError, match="1 \\+ k > 0"):
        fit_moments(ALL, statistics(-1.5, 0.0, noise=0.05), STEPS)
    (first, *_) = fit_moments(CORRECTIONS["ptqd_release"], statistics(-1.5, 0.0, noise=0.05), STEPS).corrections
    assert float(first.repairs[0].k) == 0, "raised to 0 before it is judged"


def test_what_a_part_leaves_is_the_rest():
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double() + 2
    rest = Moments.of(rows).without(Moments.of(rows[::2]))
    expected = Moments.of(rows[1::2])
    assert rest.count == expected.count
    assert torch.allclose(rest.mean, expected.mean) and torch.allclose(rest.scatter, expected.scatter)
    assert Moments.of(rows).without(Moments.of(rows)).count == 0


def test_one_image_judges_nothing():
    with pytest.raises(ValueError, match="at least 2 images"):
        fit_moments(GatedPTQD(), statistics(0.2, 0.3, 0.05, count=1), STEPS)
    measured = statistics(0.2, 0.3, 0.05)
    with pytest.raises(ValueError, match="even and odd"):
        fit_moments(GatedPTQD(), NoiseStatistics(measured.fingerprint, measured.steps), STEPS)


def test_k_is_left_where_dividing_by_it_would_raise_the_residual_more_than_it_removes():
    """E|m~ - m|^2 with 1 + k = 1/2 is 4 E[r^2]; without it k^2 E[m^2] + E[r^2] is less."""
    measured = statistics(-0.5, 0.0, noise=1.0)
    assert all(float(step.repairs[0].k) == 0 for step in fit_moments(GatedPTQD(), measured, STEPS).corrections)
    assert all(float(step.repairs[0].k) < -0.4 for step in fit_moments(ALL, measured, STEPS).corrections)


def test_a_schedule_that_changes_nothing_is_left():
    """Without the sampler's noise sigma' is 0 either way, and the fewer terms are used: none absorbs the residual."""
    steps = DDIM(4, 0.0, {}).table(DDPMScheduler(clip_sample=False).config)
    measured = statistics(0.2, 0.3, noise=0.3)
    owner = Fingerprint("n", steps.fingerprint(), SHAPE)
    found = fit_moments(GatedPTQD(), replace(measured, fingerprint=owner), steps)
    assert [own.residual.absorbed for own in found.corrections] == [0] * len(steps)


def test_what_a_part_leaves_is_without_each_samples_own_moments():
    m, q, x = torch.randn(3, 10, *SHAPE, generator=torch.Generator().manual_seed(0))
    whole, even = (StepMoments.of(*(tensor[part] for tensor in (m, q, x))) for part in (slice(None), slice(0, None, 2)))
    assert whole.per_sample.shape == (10, 3) and whole.without(even).per_sample.shape == (0, 3)


def test_a_single_image_has_no_other_half_to_be_judged_by():
    GatedPTQD().check_images(2, 3)
    with pytest.raises(ValueError, match="at least 2 images to judge the terms on, got 1"):
        GatedPTQD().check_images(1, 3)
