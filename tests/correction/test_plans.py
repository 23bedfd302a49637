"""Every correction is fitted and runs under a plan whose bits change from step to step."""

from functools import partial

import pytest
import torch

from ptq_diffusion.model import DiffusersDenoiser, Role
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import InputObservations, quantize
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerTensor
from ptq_diffusion.sampler import DDIM
from tests.correction.pipelines import OURS, STEPS, fitted, our_states, states
from tests.correction.presets import CORRECTIONS
from tests.steps import at


@pytest.fixture(scope="module")
def varying(tiny_model_folder):
    """A tiny model and a copy with 4 bits for activations at the first step, 8 at the second, float at the third."""
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    affine = partial(AffineQuantizer, symmetric=False, granularity=PerTensor(), range_search=MinMax(), bins=64)
    observations = InputObservations(model.sites(), affine)
    with observations.observing(model.network):
        model.predict(states(model, 0), at(500))
    inner = [site.name for site in model.sites() if site.role is Role.INNER]
    table = [
        {site.name: LayerBits(8, bits if site.name in inner else 8) for site in model.sites()} for bits in (4, 8, 32)
    ]
    return model, quantize(model, BitwidthPlan.by_step(table), observations, affine)


@pytest.mark.parametrize("name", sorted(CORRECTIONS))
def test_it_is_fitted_and_samples(varying, name):
    correction = fitted(name, DDIM(eta=1.0, **OURS).table(varying[0].scheduler_config), varying)
    _, images = our_states(varying, correction)
    assert len(correction.corrections) == STEPS and torch.isfinite(images).all()
    # More bits leave less noise to report: from step to step, whatever the correction is.
    first, second, third = (report.snr_q for report in correction.report())
    assert first < second and third > first
