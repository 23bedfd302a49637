"""A network finds out the scale that a stock pipeline guides it by, from the states that follow from its answers."""

import dataclasses

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from ptq_diffusion.correction.pipeline.guidance_watch import GuidanceWatch
from ptq_diffusion.sampler import DDIM
from tests.test_boundaries import CONFIG

SHAPE = (2, 4, 8, 8)


def draw(count, seed):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def sampled(watch, told, eta, swapped=False, difference=0.5, clip=None, disturbed=0.0, doubled=True, rescale=0.0):
    """Let a pipeline that guides by `told` sample with a network whose two answers differ by a random field."""
    table = DDIM(10, eta, {}).table(CONFIG)
    x = draw(1, 0)[0]
    for step in table:
        step = dataclasses.replace(step, clip=clip)
        rows = torch.cat([x, x]) if doubled else torch.cat([x, x + 1])
        watch.before(rows, step)
        null, change = draw(2, step.i + 1)
        conditional = null + difference * change
        pair = (conditional, null) if swapped else (null, conditional)
        watch.behind(rows, torch.cat(pair), step, step.sigma)
        m = rescale_noise_cfg(null + told * (conditional - null), conditional, rescale)
        x = step.mean(x, m) + step.sigma * draw(1, 100 + step.i)[0]
        x = x + disturbed * draw(1, 200 + step.i)[0]


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1.5, 7.5])
@pytest.mark.parametrize("swapped", [False, True])
def test_its_own_scale_passes_and_another_is_told(eta, scale, swapped):
    sampled(GuidanceWatch(scale), scale, eta, swapped)
    with pytest.raises(ValueError, match=f"expected guidance_scale={scale:g}, .* got about 4"):
        # With much noise a part of the states is too few to tell a digit.
        sampled(GuidanceWatch(scale), 4.0, eta, swapped, difference=30.0 if eta else 0.5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_guidance_that_is_rescaled_is_refused_by_its_name(eta, swapped):
    with pytest.raises(ValueError, match="expected guidance without guidance_rescale"):
        sampled(GuidanceWatch(3.0), 3.0, eta, swapped, difference=0.5, rescale=0.7)


def test_noise_that_hides_the_scale_is_no_reason_to_refuse():
    sampled(GuidanceWatch(1.5), 1.6, 1.0, difference=0.01)


@pytest.mark.parametrize("odd", [{"clip": 1.0}, {"difference": 0.0}, {"disturbed": 3.0}, {"doubled": False}], ids=str)
def test_states_that_came_about_otherwise_tell_nothing(odd):
    sampled(GuidanceWatch(1.5), 9.0, 0.0, **odd)


def test_a_call_without_guidance_is_said_once(caplog):
    sampled(GuidanceWatch(3.0), 1.0, 0.0, doubled=False)
    (record,) = caplog.records
    assert "corrected for guidance_scale=3" in record.getMessage()
    caplog.clear()
    sampled(GuidanceWatch(1.0), 1.0, 0.0, doubled=False)
    assert not caplog.records
