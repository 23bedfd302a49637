"""A tiny pair of networks, a correction fitted to it, and what our loop and a stock pipeline draw with it."""

from dataclasses import replace
from functools import cache

import torch
from diffusers import DDPMPipeline, DDPMScheduler

from ptq_diffusion.correction import (
    CorrectedDenoiser,
    Fingerprint,
    NoiseStatistics,
    PairedBatch,
    PathEvidence,
    Reads,
    fit_moments,
)
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.model import Pixels
from ptq_diffusion.numeric.seed import SampleNoise, generator
from ptq_diffusion.sampler import sample
from tests.correction.presets import FILES, WITH_SHIFTED


def reaches_in(file):
    return (
        bool(file.get("on_features")) or "range_search" in file or any(map(reaches_in, file.get("links", {}).values()))
    )


REACHING_IN = {name for name, file in FILES.items() if reaches_in(file)}
"""Those that read or change what is inside the network."""
WITH_NETWORK = {"qncd"}
PAIRED = {
    name
    for name, file in FILES.items()
    if any(part.get("differences") for part in (file, *file.get("links", {}).values()))
}
"""Those that quantize differences between the rows of guidance."""
SEED, BATCH, STEPS = 3, 3, 3
OURS = {"steps": STEPS, "scheduler": {}}


def states(model, seed):
    return torch.randn(96, *model.shape, generator=torch.Generator().manual_seed(seed))


@cache
@torch.no_grad()
def answered(network, step):
    """What a network of no conditions says at a step on white noise; many fits ask for the same."""
    return network.predict(states(network, step.i), step)


def asked(network, step, condition):
    if condition is None:
        return answered(network, step)
    return network.predict(states(network, step.i), step, condition)


def fitted(name, steps, pair, condition=None):
    """On white noise at every step; the path does not matter here. Made once where there are no conditions."""
    return made_once(name, steps, pair) if condition is None else made(name, steps, pair, condition)


@torch.no_grad()
def made(name, steps, pair, condition=None):
    """A fit made anew."""
    model, quantized = pair
    correction = WITH_SHIFTED[name]
    if correction.reads is not Reads.MOMENTS:
        path = [PathState(states(model, step.i), step, condition) for step in steps]
        correction = correction.ahead(model, quantized, path)
        return correction.assembled(
            [fitted_step(correction, step, model, quantized, condition) for step in steps], steps
        )
    seen = [(*(asked(network, step, condition).m for network in pair), states(model, step.i)) for step in steps]
    owner = Fingerprint("network", steps.fingerprint(), model.shape)
    return fit_moments(correction, NoiseStatistics.of(owner, seen, first=0), steps)


made_once = cache(made)


def fitted_step(correction, step, model, quantized, condition):
    """One step of a correction along a path."""
    x = states(model, step.i)
    if correction.images_for_rescaling:
        rescalings, m = correction.rescalings(model, quantized, PathState(x, step, condition))
        q, features, _ = quantized.at(step.i, rescalings).predict(x, step, condition)
    else:
        rescalings, m = {}, asked(model, step, condition).m
        q, features, _ = asked(quantized, step, condition)
    past = tuple(states(model, step.i + 1 + j) for j in range(len(step.c_0) - 1))
    batch = PairedBatch(0, q, x, features, m, x, m, past=past, float_past=past)
    return replace(correction.fit_step(PathEvidence([batch]), step), rescalings=rescalings)


@torch.no_grad()
def our_states(pair, correction):
    """x_T and every x_s after it, and the images."""
    model, quantized = pair
    noise = SampleNoise(SEED, range(BATCH), model.shape)
    rescaled = quantized.rescaled(correction.rescalings)
    predict = CorrectedDenoiser(correction, rescaled.predict, SampleNoise(SEED, range(BATCH), model.shape, "apart"))
    visits = list(sample(predict, correction.steps, noise, correction.sigma))
    return torch.stack([visit.x_t for visit in visits]), Pixels().decode(visits[-1].x_s)


def pipeline_states(pipe):
    """The same by a stock pipeline."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pipe.set_progress_bar_config(disable=True)
    streams = [generator("images", SEED, index) for index in range(BATCH)]
    images = pipe(batch_size=BATCH, generator=streams, num_inference_steps=STEPS, output_type="pt").images
    hook.remove()
    return torch.stack(seen), images


def stock(unet):
    """Any pipeline around the network, as a user has it."""
    return DDPMPipeline(unet, DDPMScheduler())


def assert_equal(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.view(torch.int32), other.view(torch.int32))
