"""What is particular to QNCD: the bias is found while sampling, from what the network says of known noise."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from ptq_diffusion.correction import (
    QNCD,
    CorrectedDenoiser,
    Fingerprint,
    FittedCorrection,
    NoCorrection,
    NoiseStatistics,
    StepMoments,
    fit_moments,
)
from ptq_diffusion.correction.corrected_denoiser import estimated_bias
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.conditions import Unconditional
from ptq_diffusion.model import GaussianDenoiser, Output, Pixels
from ptq_diffusion.network import Rescaling
from ptq_diffusion.numeric.seed import SampleNoise, generator
from ptq_diffusion.sampler import DDIM, sample
from ptq_diffusion.stage.drawing.corrected import draw_corrected

SHAPE, COUNT = (2, 4, 4), 4000
MODEL = GaussianDenoiser(SHAPE, mean=0.4, std=0.5)
MU = torch.tensor([0.1, -0.15]).view(2, 1, 1)
STEPS = DDIM(12, 0.5, {}).table(MODEL.scheduler_config)


def biased(x, step):
    """Q and features of a network without layers."""
    return Output(MODEL.predict(x, step).m + MU, x)


def fitted(correction, steps=STEPS):
    x = torch.randn(20, *SHAPE, generator=generator("x"))
    moments = [StepMoments.of(MODEL.predict(x, step).m, biased(x, step)[0], x) for step in steps]
    return fit_moments(correction, NoiseStatistics(Fingerprint("network", steps.fingerprint(), SHAPE), moments), steps)


def drawn(correction, seed, indices, asked=None):
    """x_0 of these images of the biased network, corrected."""

    def ask(x, step):
        if asked is not None:
            asked.append((x.clone(), step))
        return biased(x, step)

    predict = CorrectedDenoiser(correction, ask, SampleNoise(seed, indices, SHAPE, "apart"))
    *_, last = sample(predict, correction.steps, SampleNoise(seed, indices, SHAPE), correction.sigma)
    return last.x_s


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_planted_bias_is_found_within_its_standard_errors(kind):
    """Up to the share that the x_0 implied by a biased output hides, which is nothing towards the end."""
    steps = DDIM(12, 0.0, {"prediction_type": kind}).table(DDPMScheduler(clip_sample=False).config)
    for step in steps:
        abar = step.abar_t
        x, e = torch.randn(2, COUNT, *SHAPE, generator=generator("x", step.i)).double()
        x = abar**0.5 * (0.4 + 0.5 * x) + (1 - abar) ** 0.5 * torch.randn(x.shape, generator=generator("z", step.i))

        def ask(x, step, abar=abar):
            epsilon = MODEL.predict(x, step).m
            x_0 = (x - (1 - abar) ** 0.5 * epsilon) / abar**0.5
            return Output((x_0 - step.p_x * x) / step.p_m + MU, x)

        found = estimated_bias(ask, x, ask(x, step)[0], step, e)
        assert found.shape == (COUNT, 2, 1, 1)
        share = abar * 0.25 / (abar * 0.25 + 1 - abar)
        error = found.std(0) / COUNT**0.5
        assert ((found.mean(0) - share * MU).abs() < 3 * error + 1e-6).all()
    assert share > 0.999


def test_the_estimate_is_taken_off_until_the_next():
    correction = fitted(QNCD(5))
    assert [own.estimates for own in correction.corrections] == [
        i % 5 == 0 for i in range(12)
    ] and correction.evaluations == 3
    predict = CorrectedDenoiser(correction, biased, SampleNoise(3, range(6), SHAPE, "apart"))
    noise, x = SampleNoise(3, range(6), SHAPE, "apart"), torch.randn(6, *SHAPE, generator=generator("x"))
    for step in STEPS:
        q = biased(x, step).m
        if step.i % 5 == 0:
            bias = estimated_bias(biased, x, q, step, noise.draw())
        assert torch.equal(predict(x, step), q - bias)


def test_a_drift_of_the_state_is_taken_for_a_bias_of_the_network():
    """Which is this estimate's weakness: how an exact network answers a state that is off counts as its error."""
    for step in STEPS[:-1]:
        x, e = torch.randn(2, COUNT, *SHAPE, generator=generator("x", step.i))
        x = step.abar_t**0.5 * (0.4 + 0.5 * x) + (1 - step.abar_t) ** 0.5 * e.flip(0)
        found = []
        for drift in (0.0, -0.5):
            q = MODEL.predict(x + drift, step).m
            found.append(estimated_bias(MODEL.predict, x + drift, q, step, e))
        assert abs(float(found[0].mean())) < 4 * float(found[0].std()) / (2 * COUNT) ** 0.5
        assert (found[1] < found[0]).all()


def test_images_do_not_depend_on_their_batch():
    correction = fitted(QNCD(3))
    together = drawn(correction, 5, range(7))
    alone = torch.cat([drawn(correction, 5, [index]) for index in range(7)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-5)
    other = drawn(correction, 6, range(7))
    assert not torch.allclose(together, other, atol=0.1)


def test_estimates_shift_no_noise_of_the_walk():
    """Chunks draw their own noise as ever; what is noised again has another."""
    chunk = Chunk("images", 7, 0, 4, 4)
    starts, again = [], []
    for correction in (fitted(NoCorrection()), fitted(QNCD(4))):
        asked = []
        network = SimpleNamespace(
            shape=SHAPE,
            predict=lambda x, step, condition, asked=asked: asked.append((x.clone(), step)) or biased(x, step),
        )
        network.rescaled = lambda rescalings, network=network: network
        draw_corrected(network, correction, Unconditional(), Pixels())(chunk, torch.device("cpu"))
        assert len(asked) == len(STEPS) + correction.evaluations
        starts.append(asked[0][0])
        again.append(asked[1])
    assert torch.equal(*starts)
    noised, step = again[1]
    assert step == STEPS[0]
    x_0 = STEPS[0].predict_x_0(starts[0], biased(starts[0], step)[0])
    e = (noised - STEPS[0].abar_t ** 0.5 * x_0) / (1 - STEPS[0].abar_t) ** 0.5
    assert abs(float((e * starts[0]).mean())) < 0.3 and not torch.allclose(e, starts[0], atol=0.5)


def test_what_is_asked_again_costs(report):
    rows = {
        row["variant"]: row for row in report("correction=qncd", "correction.every=5", "sampler.steps=12")[0]["rows"]
    }
    assert rows["corrected"]["bops_per_image"] / rows["quantized"]["bops_per_image"] == pytest.approx(15 / 12)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="every to be at least 1, got 0"):
        QNCD(0)


def test_the_bias_of_a_rescaled_network_is_that_of_the_rescaled_one():
    """The network with the correction's rescalings is asked, also about the states that are noised again."""
    plain = fitted(QNCD(3))
    rescalings = [{"layer": Rescaling(torch.full((1,), 1.0 + step.i), torch.zeros(1))} for step in STEPS]
    rows = zip(plain.corrections, rescalings, strict=True)
    correction = FittedCorrection(STEPS, [replace(own, rescalings=row) for own, row in rows])
    asked, given = [], []
    rescaled = SimpleNamespace(shape=SHAPE, predict=lambda x, step, condition: asked.append(step) or biased(x, step))
    network = SimpleNamespace(shape=SHAPE, rescaled=lambda table: given.append(table) or rescaled)
    draw_corrected(network, correction, Unconditional(), Pixels())(Chunk("images", 7, 0, 2, 2), torch.device("cpu"))
    assert given == [rescalings]
    assert len(asked) == len(STEPS) + correction.evaluations > len(STEPS)
