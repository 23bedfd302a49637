"""Corrections where the network says the variance of the noise: they act on its output and leave that half alone."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline

from ptq_diffusion.correction import CorrectedNetwork, CorrectedScheduler, Matched, Regression
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.transfer import interpolated
from ptq_diffusion.model import Condition, DiffusersDenoiser, Guided
from ptq_diffusion.sampler import DDPM
from tests.correction.pipelines import OURS, WITH_NETWORK, assert_equal, fitted, our_states, pipeline_states
from tests.correction.presets import CORRECTIONS
from tests.model.networks import condition_of, denoiser_of, states_of
from tests.steps import at

LEARNED = {"variance_type": "learned_range"}


@pytest.fixture(scope="module")
def pair(tiny_model_folder, quantized_copy):
    """A float model of twice as many output as input channels, and its quantized copy."""
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder(out_channels=6)))
    return model, quantized_copy(model)


def table(pair, **options):
    return DDPM(**OURS | options).table(pair[0].scheduler_config | LEARNED)


@pytest.fixture(scope="module")
def steps(pair):
    return table(pair)


def refusal(correction, steps):
    try:
        correction.check(steps)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", [name for name in CORRECTIONS if name not in WITH_NETWORK])
def test_a_saved_pipeline_draws_our_images_bit_for_bit_or_ddpm_is_refused_with_any_variance(
    name, pair, steps, tmp_path
):
    refused = refusal(CORRECTIONS[name], steps)
    assert refused == refusal(CORRECTIONS[name], table(pair, scheduler={"variance_type": "fixed_small"}))
    if refused is not None:
        assert "sampler=ddim" in refused
        return
    correction = fitted(name, steps, pair)
    network = CorrectedNetwork(pair[1], correction)
    DDPMPipeline(network, CorrectedScheduler(correction.without_repairs())).save_pretrained(tmp_path)
    theirs = pipeline_states(DDPMPipeline.from_pretrained(tmp_path))
    assert_equal(our_states(pair, correction), theirs)
    known = replace(correction, steps=steps.with_steps(replace(step, sigma_high=None) for step in steps))
    assert not torch.allclose(our_states(pair, known)[0], theirs[0], atol=1e-3)


def test_a_learned_variance_loses_what_the_residual_brings_and_no_more_than_it_is(pair, steps):
    """PTQD's rule, at every pixel; at the lower end that of a network that says nothing."""
    variance = torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8)
    none, ptqd = (fitted(name, steps, pair) for name in ("none", "ptqd"))
    for step in steps:
        learned, one = step.spread(variance), ptqd.corrections[step.i]
        assert torch.equal(none.sigma(step, variance), learned) if step.is_learned else learned == step.sigma
        for share in (0.0, 0.3, 1.0, 5.0) if step.is_learned else ():
            v = share * step.sigma**2 / step.gain**2
            corrected = replace(one, residual=replace(one.residual, variance=v)).spread(step, variance)
            expected = (learned.square() - share * step.sigma**2).clamp(min=0)
            assert torch.allclose(corrected.square(), expected, atol=1e-6)
            at_lower_end = float(corrected.flatten()[0])
            assert at_lower_end == pytest.approx(Residual(v, 1).sigma(step), abs=1e-3 * step.sigma)
    assert [step.is_learned for step in steps] == [True, True, False]


def test_the_variance_rule_and_another_kind_of_variance_are_refused(pair, steps):
    for ruled in (Matched(variance="rule"), Regression(1, 1, 0, variance="rule")):
        with pytest.raises(ValueError, match=r"got a learned variance; set correction.variance=original"):
            ruled.check(steps)
    correction = fitted("ptqd", steps, pair)
    with pytest.raises(ValueError, match=r"another learned variance \(False in place of True\)"):
        interpolated(correction, steps, table(pair, scheduler={"variance_type": "fixed_small"}))
    unknown = replace(correction.corrections[0], residual=None)
    with pytest.raises(ValueError, match="fit it with variance=original"):
        unknown.spread(steps[0], torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["ptqd", "readout", "rescaled"])
def test_another_table_takes_the_residual_from_its_own_learned_variance(name, pair, steps):
    correction, more = fitted(name, steps, pair), table(pair, steps=5)
    carried, variance = interpolated(correction, steps, more), torch.zeros(1, 3, 8, 8)
    for step, one in zip(more, carried.corrections, strict=True):
        expected = torch.as_tensor(step.spread(variance)).square() - one.residual.taken(step)
        assert torch.allclose(torch.as_tensor(carried.sigma(step, variance)).square(), expected.clamp(min=0), atol=1e-6)


def test_a_correction_that_evaluates_twice_samples_with_the_variance_too(pair, steps):
    states, images = our_states(pair, fitted("qncd", steps, pair))
    assert images.isfinite().all() and not torch.allclose(
        states[1], our_states(pair, fitted("none", steps, pair))[0][1]
    )


def test_guidance_leaves_the_variance_of_the_conditional_rows(quantized_copy):
    """As in DiTPipeline, whatever the scale."""
    model = denoiser_of("dit")
    x, condition, null = states_of(model, 4), Condition(labels=torch.arange(4)), Condition(labels=torch.tensor([10]))
    told = model.predict(x, at(300), condition)
    assert told.variance.shape == x.shape and torch.equal(told.with_variance[:, 4:], told.variance)
    for scale in (1.0, 1.5, 4.0):
        guided = Guided(model, null, scale, (0.0, 1.0))
        for network in (guided, quantized_copy(guided, condition, x)):
            assert network.predicts_variance
        answer = guided.predict(x, at(300), condition)
        assert torch.allclose(answer.variance, told.variance, atol=1e-5)
        assert torch.allclose(answer.m, told.m, atol=1e-5) is (scale == 1)
    silent = denoiser_of("sana")
    assert not silent.predicts_variance
    assert silent.predict(states_of(silent), at(300), condition_of(silent)).variance is None
