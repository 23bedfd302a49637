"""Whole trajectories equal those of diffusers' own schedulers, fed with the same noise."""

import itertools
import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from ptq_diffusion.numeric.seed import SampleNoise, generator
from ptq_diffusion.sampler import DDIM, DDPM, sample

SHAPE, BATCH, SEED = (1, 4, 4), 3, 7
PREDICTIONS = ["epsilon", "v_prediction", "sample"]
SPACINGS = ["leading", "trailing", "linspace"]
COUNTS = [1, 5, 7, 20, 50]
ETAS = [0.0, 0.5, 1.0]
VARIANCES = ["fixed_small", "fixed_small_log", "fixed_large"]

every_option = pytest.mark.parametrize(
    ("prediction", "clip", "spacing", "schedule"),
    list(itertools.product(PREDICTIONS, [True, False], SPACINGS, ["linear", "squaredcos_cap_v2"])),
)


def config_of(prediction="epsilon", clip=False, spacing="leading", schedule="linear", **others):
    """As in scheduler_config.json."""
    options = {"prediction_type": prediction, "clip_sample": clip, "timestep_spacing": spacing}
    return json.loads(DDPMScheduler(**options, beta_schedule=schedule).to_json_string()) | others


def network(x, t):
    """Any smooth function of state and time, of about the size of a network's output."""
    return torch.sin(0.7 * x + t / 300) + 0.2 * x / (1 + x.abs())


class DoubleNoise(SampleNoise):
    def draw(self, device="cpu"):
        return super().draw(device).double()


def our_states(sampler, config, noise=DoubleNoise, said=network):
    """x_T and every x_s after it."""
    walk = sample(lambda x, step: said(x, step.t), sampler.table(config), noise(SEED, range(BATCH), SHAPE))
    visits = list(walk)
    return torch.stack([visits[0].x_t, *(visit.x_s for visit in visits)])


def diffusers_states(scheduler, count, said=network, **options):
    """The same by diffusers' code in float64, where its coefficients lose nothing."""
    noise = DoubleNoise(SEED, range(BATCH), SHAPE)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if isinstance(scheduler, DDIMScheduler):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(count)
    states = [noise.draw()]
    for t in scheduler.timesteps:
        drawn = noise.draw()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, drawn=drawn, **__: drawn)
            own = options | {"variance_noise": drawn} if isinstance(scheduler, DDIMScheduler) else options
            states.append(scheduler.step(said(states[-1], float(t)), t, states[-1], **own).prev_sample)
    return torch.stack(states)


def assert_equal_states(ours, theirs, tolerance=1e-9):
    """In units of the largest entry of each state."""
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().flatten(1).amax(1) / theirs.abs().flatten(1).amax(1)
    assert error.max() <= tolerance


@every_option
@pytest.mark.parametrize("eta", ETAS)
def test_ddim(prediction, clip, spacing, schedule, eta):
    config = config_of(prediction, clip, spacing, schedule)
    for count in COUNTS:
        theirs = diffusers_states(DDIMScheduler.from_config(config), count, eta=eta)
        assert_equal_states(our_states(DDIM(count, eta, {}), config), theirs)


@every_option
@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm(prediction, clip, spacing, schedule, variance):
    config = config_of(prediction, clip, spacing, schedule, variance_type=variance)
    for count in COUNTS:
        theirs = diffusers_states(DDPMScheduler.from_config(config), count)
        assert_equal_states(our_states(DDPM(count, {}), config), theirs)


def answer(x, t):
    """An output and a variance, which leaves [-1, 1] at some pixels, as networks' do."""
    return torch.cat([network(x, t), 1.2 * torch.cos(3 * x + t / 200)], dim=1)


@every_option
def test_learned_variance(prediction, clip, spacing, schedule):
    """The last step of a table with trailing times leads to x_0 at a time above 0, where the posterior's is 0."""
    config = config_of(prediction, clip, spacing, schedule, variance_type="learned_range")
    for count in COUNTS:
        theirs = diffusers_states(DDPMScheduler.from_config(config), count, answer)
        assert_equal_states(our_states(DDPM(count, {}), config, said=answer), theirs)


def test_a_variance_that_is_learned_must_be_said_and_one_that_is_not_is_dropped():
    config = config_of(variance_type="learned_range")
    with pytest.raises(ValueError, match="expected the network's variance .* at step 0 .*variance_type=fixed_small"):
        our_states(DDPM(5, {}), config)
    others = [DDPM(5, {"variance_type": "fixed_small"}), DDIM(5, 0.5, {})]
    for sampler in others:
        assert torch.equal(our_states(sampler, config, said=answer), our_states(sampler, config))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("count", [7, 20, 50])
def test_an_untouched_pipeline_of_diffusers(prediction, clip, count):
    """In float32, with generators that diffusers draws from itself: the noise of a sample is that of its generator."""
    config = config_of(prediction, clip)
    for sampler, scheduler, options in [
        (DDPM(count, {}), DDPMScheduler.from_config(config), {}),
        (DDIM(count, 0.0, {}), DDIMScheduler.from_config(config), {"eta": 0.0}),
        (DDIM(count, 1.0, {}), DDIMScheduler.from_config(config), {"eta": 1.0}),
    ]:
        streams = [generator("images", SEED, index) for index in range(BATCH)]
        x = torch.stack([torch.randn(SHAPE, generator=stream) for stream in streams])
        scheduler.set_timesteps(count)
        states = [x]
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, float(t)), t, x, generator=streams, **options).prev_sample
            states.append(x)
        assert_equal_states(our_states(sampler, config, SampleNoise), torch.stack(states), 1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"set_alpha_to_one": False},
        {"steps_offset": 1},
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"clip_sample": True, "clip_sample_range": 0.3},
        {"beta_start": 0.001, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        {"num_train_timesteps": 100},
        {"trained_betas": torch.linspace(0.001, 0.02, 1000).tolist()},
    ],
    ids="-".join,
)
def test_options_of_the_scheduler(prediction, options):
    config = config_of(prediction) | options
    for count, eta in itertools.product((7, 50), ETAS):
        theirs = diffusers_states(DDIMScheduler.from_config(config), count, eta=eta)
        assert_equal_states(our_states(DDIM(count, eta, {}), config), theirs)
        theirs = diffusers_states(DDPMScheduler.from_config(config), count)
        assert_equal_states(our_states(DDPM(count, {}), config), theirs)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_signal(prediction):
    """abar_T = 0 is no obstacle where x_0 does not need a division by it."""
    config = config_of(prediction, spacing="trailing", rescale_betas_zero_snr=True)
    for count in (1, 20):
        theirs = diffusers_states(DDIMScheduler.from_config(config), count, eta=0.5)
        assert_equal_states(our_states(DDIM(count, 0.5, {}), config), theirs)
        theirs = diffusers_states(DDPMScheduler.from_config(config), count)
        assert_equal_states(our_states(DDPM(count, {}), config), theirs)


@pytest.mark.parametrize("make", [lambda options: DDIM(10, 1.0, options), lambda options: DDPM(10, options)])
@pytest.mark.parametrize("live", [True, False], ids=["scheduler.config", "scheduler_config.json"])
def test_options_given_to_the_sampler_replace_the_models(make, live):
    scheduler = DDPMScheduler(prediction_type="sample")
    config = scheduler.config if live else json.loads(scheduler.to_json_string())
    replaced = make({"timestep_spacing": "trailing", "clip_sample_range": 0.5}).table(config)
    assert [step.t for step in replaced] == list(range(999, 0, -100))
    assert {step.clip for step in replaced} == {0.5}
    assert {step.p_m for step in replaced} == {1.0}
    kept = make({}).table(config)
    assert [step.t for step in kept] == list(range(900, -1, -100))
    assert {step.clip for step in kept} == {1.0}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("count", [5, 7, 20])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_gain_is_the_derivative_of_the_unclipped_step(prediction, count, spacing):
    """By differences of diffusers' step, which is affine, so that any difference is exact."""
    config = config_of(prediction, spacing=spacing)
    draw = torch.Generator().manual_seed(0)
    x, m = torch.randn(2, 2, *SHAPE, generator=draw).double()
    cases = [(DDIM(count, eta, {}), DDIMScheduler.from_config(config), {"eta": eta}) for eta in ETAS]
    for sampler, scheduler, options in [*cases, (DDPM(count, {}), DDPMScheduler.from_config(config), {})]:
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        scheduler.set_timesteps(count)
        steps = sampler.table(config)
        clipped = sampler.table(config | {"clip_sample": True})
        assert [step.gain for step in clipped] == [step.gain for step in steps]
        for step, t in zip(steps, scheduler.timesteps, strict=True):
            low, high = (
                scheduler.step(output, t, x, generator=torch.Generator().manual_seed(1), **options).prev_sample
                for output in (m, m + 1)
            )
            assert torch.allclose(high - low, torch.tensor(step.gain, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 7, 50])
def test_abar_and_snr_are_those_of_the_scheduler(count):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(count)
    for sampler in (DDIM(count, 1.0, {}), DDPM(count, {})):
        steps = sampler.table(config_of())
        assert [step.i for step in steps] == list(range(count))
        assert [step.t for step in steps] == scheduler.timesteps.tolist()
        abar = scheduler.alphas_cumprod[scheduler.timesteps].double()
        assert [step.signal for step in steps] == [a**0.5 for a in abar.tolist()]
        assert [step.noise for step in steps] == [(1 - a) ** 0.5 for a in abar.tolist()]
        assert [step.abar_t for step in steps] == pytest.approx(abar.tolist(), rel=1e-15)
        assert torch.allclose(torch.tensor([step.snr for step in steps], dtype=torch.float64), abar / (1 - abar))
