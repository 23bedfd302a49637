"""Samplers beside the diffusers schedulers that they are equal to, and the walk of each."""

import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from omegaconf import OmegaConf

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler import sample

SHAPE, BATCH, SEED = (1, 4, 4), 3, 7
SAMPLERS = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
KINDS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpm_solver": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
    "flow_euler": FlowMatchEulerDiscreteScheduler,
}
"""The scheduler of diffusers that each file of conf/sampler is equal to."""
SCALED = {"euler", "euler_ancestral"}
"""Samplers whose states are those of diffusers divided by sqrt(1 + sigma^2), but for the last."""
CLIPPED = {"ddim", "ddpm", "lcm"}
"""Samplers whose schedulers clip x_0."""


def config_of(name, **options):
    """A scheduler_config.json of a model that a sampler serves: of flow matching, or of DDPM without clipping."""
    kind = FlowMatchEulerDiscreteScheduler if name == "flow_euler" else DDPMScheduler
    unclipped = {} if name == "flow_euler" else {"clip_sample": False}
    return json.loads(kind(**unclipped | options).to_json_string())


def network(x, t):
    """Any smooth function of state and time, of about the size of a network's output."""
    return torch.sin(0.7 * x + t / 300) + 0.2 * x / (1 + x.abs())


def our_states(table):
    """Every x_s."""
    noise = SampleNoise(SEED, range(BATCH), SHAPE)
    walk = sample(lambda x, step: network(step.input_scale * x, step.t), table, noise)
    return torch.stack([visit.x_s for visit in walk])


def diffusers_states(scheduler, count, scaled=False, **options):
    """The same by diffusers' code, fed with the same noise, one draw for every step."""
    scheduler.set_timesteps(count, **options)
    noise, states = SampleNoise(SEED, range(BATCH), SHAPE), []
    x = noise.draw() * getattr(scheduler, "init_noise_sigma", 1.0)
    home = type(scheduler).__module__
    for i, t in enumerate(scheduler.timesteps):
        drawn = noise.draw()
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{home}.randn_tensor", lambda *_, drawn=drawn, **__: drawn)
            x = scheduler.step(network(seen, float(t)), t, x).prev_sample
        last = i == len(scheduler.timesteps) - 1
        states.append(x / (1 + float(scheduler.sigmas[i + 1]) ** 2) ** 0.5 if scaled and not last else x)
    return torch.stack(states)


def assert_equal_states(ours, theirs, tolerance):
    """In units of the largest entry of each state."""
    assert ours.shape == theirs.shape
    error = (ours - theirs).abs().flatten(1).amax(1) / theirs.abs().flatten(1).amax(1)
    assert error.max() <= tolerance


def ddpm_config(**options):
    """The configuration of a DDPM scheduler that does not clip."""
    return json.loads(DDPMScheduler(**{"clip_sample": False} | options).to_json_string())


def configured(name, **options):
    """The sampler of a file of conf/sampler with other options."""
    return construct(OmegaConf.merge(OmegaConf.load(CONF / "sampler" / f"{name}.yaml"), options))
