"""A stock pipeline with a corrected scheduler draws what the sampling loop of this package draws, bit for bit."""

import dataclasses
import json

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from ptq_diffusion.correction import CorrectedScheduler, FittedCorrection
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.sampler import DDIM, DDPM, FlowEuler
from tests.correction.pipelines import (
    OURS,
    REACHING_IN,
    STEPS,
    WITH_NETWORK,
    assert_equal,
    fitted,
    our_states,
    pipeline_states,
    states,
    stock,
)
from tests.correction.presets import CORRECTIONS

of_a_pipeline = pytest.mark.parametrize(
    "name", [name for name in CORRECTIONS if name not in REACHING_IN | WITH_NETWORK]
)
every_sampler = pytest.mark.parametrize(
    ("sampler", "clip"),
    [
        (DDIM(eta=0.0, **OURS), True),
        (DDIM(eta=0.5, **OURS), False),
        (DDIM(eta=1.0, **OURS), True),
    ],
    ids=["eta 0, clipped", "eta 0.5", "eta 1, clipped"],
)


@of_a_pipeline
@every_sampler
def test_a_pipeline_draws_the_images_of_our_loop_bit_for_bit(name, sampler, clip, pair):
    steps = sampler.table(pair[0].scheduler_config | {"clip_sample": clip})
    correction = fitted(name, steps, pair)
    pipe = stock(pair[1].network)
    pipe.scheduler = CorrectedScheduler(correction)
    ours = our_states(pair, correction)
    assert_equal(ours, pipeline_states(pipe))
    pipe.scheduler = CorrectedScheduler(correction.without_repairs())
    assert (name in ("none", "variance", "q_drift")) == torch.equal(ours[0], pipeline_states(pipe)[0])


def test_noise_that_a_step_absorbs_whole_is_drawn_all_the_same(pair):
    correction = fitted("ptqd", DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair)
    sigmas = [0.0, 0.5, 0.0]
    found = [dataclasses.replace(own, sigma=sigma) for own, sigma in zip(correction.corrections, sigmas, strict=True)]
    correction = FittedCorrection(correction.steps, found)
    pipe = DDPMPipeline(pair[1].network, CorrectedScheduler(correction))
    assert_equal(our_states(pair, correction), pipeline_states(pipe))


def test_a_network_that_predicts_a_variance_too(tiny_model_folder, quantized_copy):
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder(out_channels=6)))
    pair = model, quantized_copy(model)
    correction = fitted("ptqd", DDPM(**OURS).table(model.scheduler_config), pair)
    pipe = DDPMPipeline(pair[1].network, CorrectedScheduler(correction))
    assert_equal(our_states(pair, correction), pipeline_states(pipe))


@of_a_pipeline
def test_saved_and_loaded_it_is_the_same_bit_for_bit(name, pair, tmp_path):
    correction = fitted(name, DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair)
    pipe = DDPMPipeline(pair[1].network, CorrectedScheduler(correction))
    pipe.scheduler.save_pretrained(tmp_path / "new" / "scheduler")
    written = {path.name for path in (tmp_path / "new" / "scheduler").iterdir()}
    assert written == {"scheduler_config.json", "correction.json", "correction.safetensors"}
    expected = pipeline_states(pipe)
    pipe.scheduler = CorrectedScheduler.from_pretrained(tmp_path / "new", subfolder="scheduler")
    assert_equal(expected, pipeline_states(pipe))
    (tmp_path / "fit").mkdir()
    correction.save(tmp_path / "fit")
    pipe.scheduler = CorrectedScheduler.from_pretrained(tmp_path / "fit")
    assert_equal(expected, pipeline_states(pipe))


def test_a_saved_pipeline_finds_its_scheduler(pair, tmp_path):
    correction = fitted("wiener_matched", DDIM(eta=0.5, **OURS).table(pair[0].scheduler_config), pair)
    pipe = DDPMPipeline(pair[0].network, CorrectedScheduler(correction))
    pipe.save_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path, unet=pair[1].network)
    assert type(loaded.scheduler) is CorrectedScheduler
    assert_equal(our_states(pair, correction), pipeline_states(loaded))


def test_one_generator_serves_all_images_and_a_tuple_holds_the_state(pair):
    steps = DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config)
    correction = fitted("ptqd", steps, pair)
    x, q = states(pair[0], 0), states(pair[0], 1)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    scheduler = CorrectedScheduler(correction)
    (x_s,) = scheduler.step(q, steps[1].t, x, torch.Generator().manual_seed(5), return_dict=False)
    expected = steps[1].mean(x, correction.output(q, x, torch.empty(0), steps[1])) + correction.sigma(steps[1]) * z
    assert torch.equal(x_s, expected)
    assert scheduler.scale_model_input(x, steps[1].t) is x


def test_it_knows_its_own_times_whole_or_not(pair):
    correction = fitted("stepbaq", DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair)
    scheduler, x = CorrectedScheduler(correction), states(pair[0], 0)
    assert any(step.t != round(step.t) for step in correction.steps)
    for step in correction.steps:
        one, other = (
            scheduler.step(x, t, x, torch.Generator().manual_seed(5), return_dict=False)
            for t in (step.t, torch.tensor(step.t))
        )
        assert torch.equal(*one, *other)


@pytest.mark.parametrize("name", sorted(REACHING_IN))
def test_a_correction_that_reaches_into_the_network_is_refused(name, pair):
    correction = fitted(name, DDIM(1, 1.0, {}).table(pair[0].scheduler_config), pair)
    with pytest.raises(ValueError, match=r"(input of its output layer|rescales its layers), .*goal=export"):
        CorrectedScheduler(correction)


@pytest.mark.parametrize("name", sorted(WITH_NETWORK))
def test_a_correction_that_asks_twice_is_refused(name, pair):
    correction = fitted(name, DDIM(1, 1.0, {}).table(pair[0].scheduler_config), pair)
    with pytest.raises(ValueError, match=r"a pipeline's scheduler has no network.*goal=samples_corrected"):
        CorrectedScheduler(correction)


@pytest.fixture
def scheduler(pair):
    return CorrectedScheduler(fitted("ptqd", DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair))


def test_another_number_of_steps_is_refused(pair, scheduler):
    pipe = DDPMPipeline(pair[1].network, scheduler)
    with pytest.raises(ValueError, match="expected num_inference_steps=3, .* got 1000; .*sampler.steps"):
        pipe()


def test_ddim_pipeline_neither_drops_the_correction_nor_its_eta(pair, scheduler):
    unet = pair[1].network
    with pytest.raises(NotImplementedError, match="which only itself can follow"):
        DDIMPipeline(unet, scheduler)
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match="no other options, got use_clipped.*use DDPMPipeline"):
        pipe(num_inference_steps=STEPS)


def test_another_eta_than_that_of_the_fit_is_refused(pair, scheduler):
    x = states(pair[0], 0)
    with pytest.raises(ValueError, match="no eta in the call, got 0.5: .*leave it out, .* sampler.eta=VALUE"):
        scheduler.step(x, 666, x, eta=0.5)
    drawn = [scheduler.step(x, 666, x, torch.Generator().manual_seed(0), **options) for options in ({}, {"eta": 0.0})]
    assert torch.equal(drawn[0].prev_sample, drawn[1].prev_sample), "which stock pipelines pass on by themselves"


def test_other_times_and_broken_outputs_are_refused(pair, scheduler):
    x = states(pair[0], 0)
    with pytest.raises(ValueError, match="one of 666, 333, 0, got 667"):
        scheduler.step(x, 667, x)
    with pytest.raises(FloatingPointError, match="after t = 333"):
        scheduler.step(x * torch.nan, torch.tensor(333), x)
    steps = scheduler.correction.steps
    twice = FittedCorrection(steps.with_steps([steps[0]] * STEPS), scheduler.correction.corrections)
    with pytest.raises(ValueError, match="whose times differ"):
        CorrectedScheduler(twice)


def test_a_configuration_or_a_strange_folder_makes_no_scheduler(scheduler, tmp_path):
    with pytest.raises(ValueError, match=r"use CorrectedScheduler.from_pretrained\(folder\)"):
        CorrectedScheduler.from_config(scheduler.config)
    DDPMScheduler().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected correction.json"):
        CorrectedScheduler.from_pretrained(tmp_path)
    scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["num_inference_steps"] == STEPS
    with pytest.raises(NotImplementedError, match="which only itself can follow"):
        DDPMScheduler.from_pretrained(tmp_path)


def test_a_step_reads_the_prediction_before_it_until_sampling_begins_anew(pair):
    """On a table with two coefficients, as the loop does."""
    model, _ = pair
    fit = fitted("none", DDIM(eta=1.0, **OURS).table(model.scheduler_config), pair)
    table = fit.steps.with_steps(
        dataclasses.replace(step, c_0=(*step.c_0, 0.3 if step.i else 0.0)) for step in fit.steps
    )
    scheduler = CorrectedScheduler(FittedCorrection(table, fit.corrections))
    for _ in range(2):
        scheduler.set_timesteps(STEPS)
        state, stream, other = table.start(states(model, 0)), *(torch.Generator().manual_seed(5) for _ in range(2))
        for step in table:
            m = torch.sin(state.x)
            x_s = scheduler.step(m, step.t, state.x, generator=stream).prev_sample
            state = step.advance(state, m, step.sigma, torch.randn(state.x.shape, generator=other))
            assert torch.equal(x_s, state.x)
        assert len(state.past) == 1


def test_coefficients_of_another_version_are_refused(scheduler, tmp_path):
    scheduler.save_pretrained(tmp_path)
    path = tmp_path / "correction.json"
    config = json.loads(path.read_text())
    for broken in (
        {"table": config["table"] | {"format": 0}},
        {"table": None},
        {"table": config["table"] | {"steps": 3}},
        {"estimates": [0.5] * len(config["estimates"])},
    ):
        path.write_text(json.dumps(config | broken))
        with pytest.raises(ValueError, match="FittedCorrection.save wrote .* fit or export it again"):
            CorrectedScheduler.from_pretrained(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="FittedCorrection.save wrote .* fit or export it again"):
        CorrectedScheduler.from_pretrained(tmp_path)


def test_pipelines_of_flow_matching_begin_at_the_first_step_and_leave_the_levels_to_the_table(pair):
    table = FlowEuler(3).table({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    scheduler = CorrectedScheduler(fitted("bias", table, pair))
    scheduler.set_timesteps(3, mu=0.7)
    scheduler.set_begin_index(0)
    assert scheduler.timesteps.tolist() == pytest.approx([step.t for step in table])
    assert scheduler.config.use_flow_sigmas
    with pytest.raises(ValueError, match="expected to begin at the first step, .* got step 2; draw from noise"):
        scheduler.set_begin_index(2)


TOKENS = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""The line that a pipeline takes where a scheduler's configuration says none."""
FLOWS = {
    "dynamic": {"use_dynamic_shifting": True},
    "another line": {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 1.7, "max_image_seq_len": 2048},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "static": {"shift": 3.0},
}


@pytest.mark.parametrize("options", FLOWS.values(), ids=FLOWS)
def test_a_pipeline_that_tells_mu_has_the_noise_levels_of_the_stock_scheduler(pair, tmp_path, options):
    """Step for step, with the mu that it computes from either scheduler; that of another size is refused, if read."""
    stock, tokens = FlowMatchEulerDiscreteScheduler(**options), 1024
    steps = FlowEuler(STEPS).table(json.loads(stock.to_json_string()) | {"image_seq_len": tokens})
    CorrectedScheduler(fitted("none", steps, pair)).save_pretrained(tmp_path)
    ours = CorrectedScheduler.from_pretrained(tmp_path)

    def mu(scheduler, tokens):
        return calculate_shift(tokens, *(scheduler.config.get(name, default) for name, default in TOKENS.items()))

    for scheduler in (stock, ours):
        scheduler.set_timesteps(STEPS, mu=mu(scheduler, tokens))
    assert ours.config.get("use_dynamic_shifting", False) == stock.config.use_dynamic_shifting
    assert torch.equal(ours.timesteps.float(), stock.timesteps)
    x = x_stock = states(pair[0], 0)[:2]
    for i, t in enumerate(stock.timesteps):
        m = states(pair[0], 1 + i)[:2]
        x, x_stock = ours.step(m, t, x).prev_sample, stock.step(m, t, x_stock).prev_sample
        torch.testing.assert_close(x, x_stock, atol=1e-5, rtol=0)
    if stock.config.use_dynamic_shifting:
        with pytest.raises(ValueError, match=r"shift of states of 1024 tokens, .* got mu=.* height and width"):
            ours.set_timesteps(STEPS, mu=mu(ours, 256))
    else:
        ours.set_timesteps(STEPS, mu=mu(ours, 256))
    assert torch.equal(ours.timesteps.float(), stock.timesteps)
