"""Identities of the table, over every sampler of conf/sampler."""

import itertools
import json

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, ScoreSdeVeScheduler
from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.sampler import DDIM, DDPM
from ptq_diffusion.sampler.step import fingerprint

SAMPLERS = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
PREDICTIONS = ["epsilon", "v_prediction", "sample"]

every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def config_of(**options):
    return json.loads(DDPMScheduler(**{"clip_sample": False} | options).to_json_string())


def configured(name, **options):
    return construct(OmegaConf.merge(OmegaConf.load(CONF / "sampler" / f"{name}.yaml"), options))


def states(seed=0):
    """x_t and epsilon in float64."""
    return torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).double()


@every_sampler
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_three_parameterizations_of_one_prediction_give_one_step(name, clip, spacing):
    tables = [
        configured(name).steps(config_of(prediction_type=kind, clip_sample=clip, timestep_spacing=spacing))
        for kind in PREDICTIONS
    ]
    x, epsilon = states()
    for of_epsilon, of_v, of_sample in zip(*tables, strict=True):
        signal, noise = of_epsilon.abar_t**0.5, (1 - of_epsilon.abar_t) ** 0.5
        x_0 = (x - noise * epsilon) / signal
        expected = of_epsilon.mean(x, epsilon)
        for step, m in ((of_v, signal * epsilon - noise * x_0), (of_sample, x_0)):
            assert torch.allclose(step.mean(x, m), expected, rtol=1e-9, atol=1e-9 * float(x_0.abs().max()))
            assert step.sigma == of_epsilon.sigma
        # One error of x_0 is one error of x_s, whatever the parameterization: b is its multiple.
        assert of_epsilon.gain == pytest.approx(-noise / signal * of_sample.gain, rel=1e-6, abs=1e-12)
        assert of_v.gain == pytest.approx(-noise * of_sample.gain, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("count", "offset"), [(1, 0), (5, 0), (7, 0), (20, 1), (50, 0), (1000, 0)])
def test_ddim_with_all_its_noise_is_ddpm(prediction, count, offset):
    config = config_of(prediction_type=prediction, steps_offset=offset, variance_type="fixed_small")
    x, m = states()
    for ddim, ddpm in zip(DDIM(count, 1.0, {}).steps(config), DDPM(count, {}).steps(config), strict=True):
        assert ddim.t == ddpm.t
        assert torch.allclose(ddim.mean(x, m), ddpm.mean(x, m), rtol=1e-9, atol=1e-9)
        assert ddim.sigma == pytest.approx(ddpm.sigma, rel=1e-9)
        assert ddim.gain == pytest.approx(ddpm.gain, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("count", [5, 20])
def test_the_gains_of_the_method(count):
    """The table in method.md, for a step from t to s, with alpha_t = abar_t / abar_s."""
    abar = DDPMScheduler().alphas_cumprod.double()
    stride = 1000 // count
    for eta, kind in itertools.product((0.0, 0.5, 1.0), PREDICTIONS):
        for step in DDIM(count, eta, {}).steps(config_of(prediction_type=kind)):
            at = abar[step.t]
            a_s = abar[step.t - stride] if step.t >= stride else torch.tensor(1.0).double()
            base = (1 - a_s - step.sigma**2).clamp(min=0).sqrt() - (a_s * (1 - at) / at).sqrt()
            factor = {"epsilon": 1.0, "v_prediction": at.sqrt(), "sample": -(at / (1 - at)).sqrt()}[kind]
            assert step.gain == pytest.approx(float(factor * base), rel=1e-9)
            assert step.sigma**2 == pytest.approx(float(eta**2 * (1 - a_s) / (1 - at) * (1 - at / a_s)), rel=1e-9)
    for step in DDPM(count, {}).steps(config_of()):
        at = abar[step.t]
        alpha = at / abar[step.t - stride] if step.t >= stride else at
        assert step.gain == pytest.approx(float(-(1 - alpha) / (alpha.sqrt() * (1 - at).sqrt())), rel=1e-9)


@every_sampler
def test_without_noise_there_is_none(name):
    """The last step adds none, and eta = 0 adds none at all."""
    steps = configured(name).steps(config_of())
    assert steps[-1].sigma == 0 and all(step.sigma > 0 for step in steps[:-1])
    assert all(step.sigma == 0 for step in DDIM(20, 0.0, {}).steps(config_of()))


def test_eta_scales_the_noise_and_leaves_less_for_the_direction():
    none, half, full = (DDIM(20, eta, {}).steps(config_of()) for eta in (0.0, 0.5, 1.0))
    for a, b, c in zip(none, half, full, strict=True):
        assert b.sigma == pytest.approx(c.sigma / 2)
        assert a.direction**2 == pytest.approx(b.direction**2 + b.sigma**2) == c.direction**2 + c.sigma**2


@every_sampler
def test_clipping_acts_on_x_0_alone(name):
    x, m = states()
    clipped, free = (configured(name).steps(config_of(clip_sample=clip)) for clip in (True, False))
    for a, b in zip(clipped, free, strict=True):
        assert a.predict_x_0(x, m).abs().max() <= 1
        assert torch.equal(a.predict_x_0(x, m), b.predict_x_0(x, m).clamp(-1, 1))
        assert torch.equal(a.mean(x, m), b.c_x * x + b.c_m * m + b.c_0 * b.predict_x_0(x, m).clamp(-1, 1))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_another_direction_keeps_all_but_the_coefficient_of_epsilon(kind):
    x, epsilon = states()
    for step in DDIM(20, 1.0, {}).steps(config_of(prediction_type=kind)):
        assert step.with_direction_of(step.sigma) == step
        signal, noise = step.abar_t**0.5, (1 - step.abar_t) ** 0.5
        x_0 = (x - noise * epsilon) / signal
        m = {"epsilon": epsilon, "v_prediction": signal * epsilon - noise * x_0, "sample": x_0}[kind]
        for sigma in (0.0, step.sigma / 2):
            other = step.with_direction_of(sigma)
            # 1 - abar_s is what direction and noise share.
            expected = (step.direction**2 + step.sigma**2 - sigma**2) ** 0.5 if step.direction else 0.0
            assert other.direction == pytest.approx(expected)
            assert other.sigma == step.sigma
            moved = other.mean(x, m) - step.mean(x, m)
            scale = 1e-8 * float(x_0.abs().max())
            assert torch.allclose(moved, (expected - step.direction) * epsilon, rtol=1e-8, atol=scale)


def test_a_sampler_without_direction_says_so():
    for step in DDPM(5, {}).steps(config_of()):
        with pytest.raises(ValueError, match="sampler=ddim"):
            step.with_direction_of(0.0)


@every_sampler
def test_fingerprints_tell_tables_apart(name):
    base = fingerprint(configured(name).steps(config_of()))
    assert base == fingerprint(configured(name).steps(config_of()))
    others = [
        configured(name).steps(config_of(clip_sample=True)),
        configured(name).steps(config_of(clip_sample=True, clip_sample_range=2.0)),
        configured(name).steps(config_of(prediction_type="sample")),
        configured(name).steps(config_of(beta_schedule="squaredcos_cap_v2")),
        configured(name).steps(config_of(timestep_spacing="trailing")),
        configured(name, steps=19).steps(config_of()),
        configured(name).steps(config_of())[:-1],
    ]
    assert len({base, *map(fingerprint, others)}) == len(others) + 1
    assert len({fingerprint(DDIM(20, eta, {}).steps(config_of())) for eta in (0.0, 0.5, 1.0)}) == 3


@every_sampler
@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"thresholding": True}, "thresholding=false"),
        ({"prediction_type": "flow"}, "expected prediction_type epsilon, v_prediction or sample"),
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "set .sampler.scheduler.rescale_betas_zero_snr=false",
        ),
        ({"steps_offset": 60}, "steps_offset"),
    ],
    ids=["thresholding", "prediction", "zero terminal signal", "offset"],
)
def test_options_that_are_not_reproduced_are_refused(name, options, remedy):
    with pytest.raises(ValueError, match=remedy):
        configured(name, steps=20).steps(config_of() | options)


@pytest.mark.parametrize("variance", ["learned", "learned_range", "fixed_large_log"])
def test_variances_that_are_not_reproduced_are_refused(variance):
    with pytest.raises(ValueError, match=f"got '{variance}'; set .sampler.scheduler.variance_type"):
        DDPM(20, {}).steps(config_of(variance_type=variance))
    assert DDPM(20, {"variance_type": "fixed_small"}).steps(config_of(variance_type=variance))
    assert DDIM(20, 1.0, {}).steps(config_of(variance_type=variance)) == DDIM(20, 1.0, {}).steps(config_of())


@every_sampler
@pytest.mark.parametrize("kind", [ScoreSdeVeScheduler, FlowMatchEulerDiscreteScheduler])
def test_schedulers_of_another_process_are_refused(name, kind):
    with pytest.raises(ValueError, match=f"with a beta_schedule, .*{kind.__name__}"):
        configured(name).steps(json.loads(kind().to_json_string()))


@every_sampler
def test_rounding_of_diffusers_that_adds_a_step_is_refused(name):
    """61 trailing steps of 1000 become 62, the last at t = -1."""
    with pytest.raises(ValueError, match="expected 61 times between 999 and 0, diffusers gives 62"):
        configured(name, steps=61).steps(config_of(timestep_spacing="trailing"))


@every_sampler
def test_numbers_of_steps_that_make_no_sense_are_refused(name):
    for steps in (0, -3):
        with pytest.raises(ValueError, match="at least one step"):
            configured(name, steps=steps)
    with pytest.raises(ValueError, match="1001"):
        configured(name, steps=1001).steps(config_of())


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(ValueError, match=r"expected eta in \[0, 1\]"):
        DDIM(20, eta, {})


@every_sampler
def test_options_that_no_scheduler_has_are_refused(name):
    with pytest.raises(ValueError, match="got timestep_spacin"):
        configured(name, scheduler={"timestep_spacin": "trailing"}).steps(config_of())
