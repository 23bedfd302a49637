"""Corrections of a guided, class-conditional network of latents with four channels."""

import pytest
import torch

from ptq_diffusion.correction import CorrectedDenoiser, CorrectedNetwork
from ptq_diffusion.model import Condition, DiffusersDenoiser, Guided
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.network.layer import CurrentStep
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler import DDIM
from tests.correction.pipelines import OURS, PAIRED, WITH_NETWORK, fitted, states
from tests.correction.presets import CORRECTIONS

CLASSES, NO_CLASS, SCALE = 4, 3, 2.0
LABELS = Condition(labels=torch.arange(96) % NO_CLASS)
NULL = Condition(labels=torch.tensor([NO_CLASS]))


@pytest.fixture(scope="module")
def guided(tiny_model_folder, quantized_copy):
    """A guided float model and its quantized copy."""
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder(channels=4, classes=CLASSES)))
    model = Guided(model, NULL, SCALE, (0.0, 1.0))
    return model, quantized_copy(model, LABELS)


@pytest.fixture(scope="module")
def steps(guided):
    return DDIM(eta=0.5, **OURS).table(guided[0].scheduler_config)


@pytest.mark.parametrize("name", [name for name in CORRECTIONS if name not in WITH_NETWORK])
def test_a_pipeline_that_guides_behind_repaired_rows_says_the_repaired_combination(name, guided, steps):
    """Which brings the output nearer to the guided float one where the correction is of it."""
    model, quantized = guided
    correction = fitted(name, steps, guided, LABELS)
    step, x, condition = correction.steps[1], states(model, 9)[:8], LABELS.rows(slice(8))
    network, rescaled = CorrectedNetwork(quantized, correction), quantized.rescaled(correction.rescalings)
    assert network.config.guidance_scale == SCALE
    doubled = {"class_labels": torch.cat([NULL.expanded(8).labels, condition.labels])}
    with torch.no_grad():
        null, conditional = network(torch.cat([x, x]), step.t, **doubled).sample.chunk(2)
        ask = CorrectedDenoiser(correction, lambda x, step: rescaled.predict(x, step, condition), None)
        expected = ask(x, step)
    m = null + SCALE * (conditional - null)
    assert torch.allclose(m, expected, atol=1e-4)
    assert not torch.allclose(m, conditional, atol=1e-2)


@pytest.mark.parametrize("name", sorted(PAIRED))
def test_rows_that_depend_on_each_other_are_not_asked_one_by_one(name, guided, steps):
    correction = fitted(name, steps, guided, LABELS)
    assert correction.pairs_rows
    step = next(step for step in steps if any(one.has_difference for one in correction.rescalings[step.i].values()))
    x, labels = states(guided[0], 9)[:8], LABELS.rows(slice(8))
    with pytest.raises(ValueError, match=f"grid at step {step.i}, got single rows"):
        guided[1].rescaled(correction.rescalings).unguided().predict(x, step, labels)
    network = CorrectedNetwork(guided[1], correction)
    with pytest.raises(ValueError, match="two rows of one state .* guidance_scale=2"):
        network(x, step.t, class_labels=labels.labels)
    with pytest.raises(ValueError, match="a network with guidance"):
        CorrectedNetwork(guided[1].unguided(), correction)


@pytest.mark.parametrize("name", sorted(PAIRED))
def test_integers_compute_pairs_too(name, guided, steps):
    """Up to the inputs of later layers that rounding takes to another number of their grids."""
    correction = fitted(name, steps, guided, LABELS)
    x, labels = states(guided[0], 9)[:8], LABELS.rows(slice(8))
    simulated = guided[1].rescaled(correction.rescalings)
    integers = guided[1].to_backend("integer").rescaled(correction.rescalings)
    doubled = {"class_labels": torch.cat([NULL.expanded(8).labels, labels.labels])}
    networks = [CorrectedNetwork(guided[1], correction), CorrectedNetwork(guided[1], correction).to_backend("integer")]
    for step in steps:
        said = [network.predict(x, step, labels).m for network in (simulated, integers, guided[1])]
        assert (said[1] - said[0]).norm() < 0.2 * (said[2] - said[0]).norm()
        pairs = [network(torch.cat([x, x]), step.t, **doubled).sample for network in networks]
        assert (pairs[1] - pairs[0]).norm() < 0.2 * (said[2] - said[0]).norm()


def test_qncd_asks_the_guided_network_again(guided, steps):
    model, quantized = guided
    correction, condition = fitted("qncd", steps, guided, LABELS), LABELS.rows(slice(8))
    noise = SampleNoise(0, range(8), model.shape)
    ask = CorrectedDenoiser(correction, lambda x, step: quantized.predict(x, step, condition), noise)
    with torch.no_grad():
        assert ask(states(model, 9)[:8], steps[0]).isfinite().all()


@pytest.mark.parametrize("name", ["rescaled", "readout", "matched"])
def test_the_correction_brings_the_guided_output_nearer(name, guided, steps):
    model, quantized = guided
    correction = fitted(name, steps, guided, LABELS)
    rescaled, x, step = quantized.rescaled(correction.rescalings), states(model, 9), steps[1]
    with torch.no_grad():
        m, q = (network.predict(x, step, LABELS).m for network in guided)
        ask = CorrectedDenoiser(correction, lambda x, step: rescaled.predict(x, step, LABELS), None)
        assert (ask(x, step) - m).square().sum() < (q - m).square().sum()


def test_guidance_that_no_pipeline_has_is_refused(guided, steps):
    model, quantized = guided
    correction = fitted("bias", steps, guided, LABELS)
    some = quantized.denoiser.denoiser
    for scale, interval in ((0.5, (0.0, 1.0)), (2.0, (0.0, 0.5))):
        parts = quantized.sites(), quantized.attention_macs(), quantized.plan, CurrentStep()
        other = QuantizedDenoiser(Guided(some, NULL, scale, interval), *parts)
        with pytest.raises(ValueError, match=r"guidance above 1 and at all steps.*goal=samples_corrected"):
            CorrectedNetwork(other, correction)
