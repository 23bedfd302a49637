"""Every correction under every sampler: fitted, saved and in a stock pipeline, or refused by name."""

import itertools
import json

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from ptq_diffusion.correction import CorrectedNetwork, CorrectedScheduler, FittedCorrection
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.sampler import LCM, DPMSolver, Euler, EulerAncestral, FlowEuler
from tests.correction.pipelines import (
    BATCH,
    OURS,
    SEED,
    WITH_NETWORK,
    assert_equal,
    fitted,
    our_states,
    pipeline_states,
)
from tests.correction.presets import CORRECTIONS

LINSPACE = json.loads(DDPMScheduler(timestep_spacing="linspace").to_json_string())
FLOW = json.loads(FlowMatchEulerDiscreteScheduler(shift=2.0).to_json_string())
TABLES = {
    "euler": Euler(**OURS).table(LINSPACE),
    "euler_ancestral": EulerAncestral(**OURS).table(LINSPACE | {"prediction_type": "v_prediction"}),
    "dpm_solver": DPMSolver(**OURS, sde=True).table(LINSPACE),
    "dpm_solver, ode": DPMSolver(**OURS).table(LINSPACE),
    "lcm": LCM(**OURS).table(LINSPACE | {"clip_sample": True}),
    "flow_euler": FlowEuler(**OURS).table(FLOW),
}
REFUSED = {
    "ptqd_release": ({"dpm_solver", "dpm_solver, ode", "lcm"}, "direction=reduced needs a DDIM sampler"),
    "stepbaq": ({"dpm_solver", "dpm_solver, ode", "lcm", "flow_euler"}, "DDIM.s form|flow matching"),
    **dict.fromkeys(
        ("dns", "q_drift"), ({"dpm_solver", "dpm_solver, ode", "lcm"}, "expected a sampler of DDIM.s form")
    ),
    "d2dpm_stochastic": ({"dpm_solver", "dpm_solver, ode"}, "expected a one-step sampler with the stochastic D2-DPM"),
}
"""Corrections whose mathematics does not hold under some samplers, and how they say so."""
every_sampler = pytest.mark.parametrize("sampler", TABLES)


def serves(name, sampler):
    return sampler not in REFUSED.get(name, ((), ""))[0]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        (name, sampler)
        for name, sampler in itertools.product(sorted(CORRECTIONS.keys() - WITH_NETWORK), TABLES)
        # Rescaled layers know nothing of the sampler, and take their time.
        if not name.startswith("rescaled") or sampler == "dpm_solver"
    ],
)
def test_a_saved_pipeline_draws_our_images_bit_for_bit(name, sampler, pair, tmp_path):
    """A DDPMPipeline, which scales no state itself."""
    table = TABLES[sampler]
    if not serves(name, sampler):
        with pytest.raises(ValueError, match=REFUSED[name][1]):
            CORRECTIONS[name].check(table)
        return
    CORRECTIONS[name].check(table)
    correction = fitted(name, table, pair)
    correction.save(tmp_path)
    loaded = FittedCorrection.load(tmp_path)
    assert loaded.steps == correction.steps
    pipe = DDPMPipeline(CorrectedNetwork(pair[1], loaded), CorrectedScheduler(loaded.without_repairs()))
    assert_equal(our_states(pair, correction), pipeline_states(pipe))


@pytest.mark.parametrize("name", sorted(WITH_NETWORK))
@every_sampler
def test_a_correction_that_asks_twice_draws_too(name, sampler, pair):
    assert our_states(pair, fitted(name, TABLES[sampler], pair))[0].isfinite().all()


@torch.no_grad()
def scaled_states(unet, scheduler, x, streams):
    """The loop of a pipeline that scales what its network sees, as those of latents do."""
    scheduler.set_timesteps(OURS["steps"])
    x, seen = x * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        seen.append(x)
        q = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(q, t, x, streams).prev_sample
    return torch.stack(seen)


@every_sampler
def test_a_scheduler_alone_serves_a_pipeline_that_scales(sampler, pair):
    """The pipeline's own network, and the correction in its scheduler."""
    correction = fitted("ptqd", TABLES[sampler], pair)
    streams = [generator("images", SEED, index) for index in range(BATCH)]
    x = torch.stack([torch.randn(pair[0].shape, generator=stream) for stream in streams])
    scheduler = CorrectedScheduler(correction)
    states = scaled_states(pair[1].network, scheduler, x, streams)
    assert torch.equal(states, our_states(pair, correction)[0])
    if correction.steps[0].input_scale != 1:
        with pytest.raises(ValueError, match="expected a pipeline that scales the network.s input.*goal=export"):
            pipeline_states(DDPMPipeline(pair[1].network, scheduler))
    assert (correction.steps[0].input_scale != 1) is sampler.startswith("euler")
