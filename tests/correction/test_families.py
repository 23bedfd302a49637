"""Corrections of every family's networks, guided: convolutions and tokens, labels and prompts, 2 to 16 channels."""

from dataclasses import replace

import pytest
import torch

from ptq_diffusion.correction import Fingerprint, NoiseStatistics, PairedBatch, PathEvidence, Reads, fit_moments
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.model import Condition, Guided
from ptq_diffusion.sampler import DDIM
from tests.correction.presets import CORRECTIONS
from tests.model.networks import NETWORKS, condition_of, denoiser_of, states_of

COUNT = 72
TABLE = DDIM(steps=2, eta=1.0, scheduler={}).table({"_class_name": "DDPMScheduler"})
STEP = TABLE[1]
SHARED = ("ids", "mask", "scale")
"""Tensors that are those of any condition where there is none."""


def null_of(condition):
    """A null condition of the same tensors."""
    row = condition.rows([0]).tensors()
    return Condition(**{name: row[name] if name in SHARED else 0 * row[name] for name in row})


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, quantized_copy):
    """A float model, its quantized copy, states and conditions, and what both say."""
    model, condition = denoiser_of(request.param), None
    if some := condition_of(model, 4):
        condition = some.rows(torch.arange(COUNT) % 4)
        model = Guided(model, null_of(some), 1.5, (0.0, 1.0))
    x = states_of(model.denoiser if isinstance(model, Guided) else model, COUNT)
    quantized = quantized_copy(model, condition, x)
    with torch.no_grad():
        m = model.predict(x, STEP, condition).m
        return model, quantized, x, condition, m, *quantized.predict(x, STEP, condition)[:2]


def error(repaired, m):
    return float((repaired - m).square().mean())


@pytest.mark.parametrize("name", CORRECTIONS)
def test_every_correction_is_fitted_and_keeps_the_shape(name, network):
    """Chains behind the layers that their first link rescales; nothing that it adds grows out of bounds."""
    model, quantized, x, condition, m, q, features = network
    correction = CORRECTIONS[name]
    correction.check(TABLE)
    correction.check_images(COUNT, x.shape[1])
    if correction.reads is Reads.MOMENTS:
        steps = TABLE.with_steps([replace(STEP, i=0)])
        statistics = NoiseStatistics.of(Fingerprint("", steps.fingerprint(), model.shape), [(m, q, x)], first=0)
        fitted = fit_moments(correction, statistics, steps)
        repaired = fitted.output(q, x, features, steps[0])
    else:
        rescalings, _ = correction.rescalings(model, quantized, PathState(x, STEP, condition))
        q, features, _ = quantized.at(STEP.i, rescalings).predict(x, STEP, condition)
        step = correction.fit_step(PathEvidence([PairedBatch(0, q, x, features, m, x, m)]), STEP)
        repaired = step.output(q, x, features)
        assert sum(repair.macs(x.shape[1:]) for repair in step.repairs) < 10**7
    assert repaired.shape == m.shape and repaired.isfinite().all()
    assert error(repaired, m) < 4 * error(q, m), "no correction makes of the noise a multiple of it"


def test_a_readout_of_tokens_explains_what_their_own_readout_lost(network):
    """m and q from the same features, by weights that differ: R finds the difference, whatever the patch."""
    model, quantized, x, _, _, q, features = network
    p = model.patch_size
    assert features.shape[2:] == (x.shape[2] // p, x.shape[3] // p)
    weight = torch.randn(q.shape[1] * p**2, features.shape[1], generator=torch.Generator().manual_seed(0))
    change = torch.einsum("of,bfhw->bohw", weight, features)
    m = q + torch.nn.functional.pixel_shuffle(change, p)
    evidence = PathEvidence([PairedBatch(0, q, x, features, m, x, m)])
    fitted = CORRECTIONS["readout"].fit_step(evidence, STEP)
    assert error(fitted.output(q, x, features), m) < 1e-3 * error(q, m)


def test_rescaled_layers_bring_the_output_nearer(network):
    """Those of text encoders' tokens and of time embeddings too, whatever their shapes."""
    model, quantized, x, condition, m, q, _ = network
    rescalings, said = CORRECTIONS["rescaled"].rescalings(model, quantized, PathState(x, STEP, condition))
    assert torch.equal(said, m)
    rescaled = quantized.at(STEP.i, rescalings).predict(x, STEP, condition).m
    assert error(rescaled, m) < error(q, m) if rescalings else torch.equal(rescaled, q)
