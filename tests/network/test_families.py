"""Networks of every family are quantized, saved and read back bit for bit, and hand over their features as a map."""

import pytest
import torch

from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import InputObservations, QuantizedLinear, load_quantized, quantize, save_quantized
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel, PerTensor
from tests.model.networks import NETWORKS, condition_of, denoiser_of, states_of
from tests.network.networks import FLOAT
from tests.steps import at


def whole_range(symmetric, granularity):
    """From a bitwidth to a quantizer that is made in no time."""
    return lambda bits: AffineQuantizer(bits, symmetric, granularity, MinMax(), 64)


WEIGHT, ACTIVATION = whole_range(True, PerChannel()), whole_range(False, PerTensor())
STEPS = (at(900, 0), at(20, 1))


def quantized_family(denoiser, condition, table_bits=32):
    """W4A8 at the first step, W8A4 at the second; attention's products too, where they are sites."""
    x, sites = states_of(denoiser), denoiser.sites()
    observations = InputObservations(sites, ACTIVATION)
    with observations.observing(denoiser.network):
        for step in STEPS:
            denoiser.predict(x, step, condition)
    rows = [{site.name: LayerBits(*bits) for site in sites} for bits in ((4, 8), (8, 4))]
    return quantize(denoiser, BitwidthPlan.by_step(rows), observations, WEIGHT, table_bits=table_bits)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_is_quantized_and_saved_with_features_as_a_map(name, tmp_path):
    denoiser = denoiser_of(name)
    x, condition = states_of(denoiser), condition_of(denoiser)
    quantized = quantized_family(denoiser, condition)
    save_quantized(quantized, tmp_path)
    loaded = load_quantized(tmp_path)
    assert loaded.fingerprint() == quantized.fingerprint()
    side, layer = denoiser.patch_size, loaded.output_layer
    for step in STEPS:
        m, features, _ = quantized.predict(x, step, condition)
        again = loaded.predict(x, step, condition)
        assert torch.equal(again.m, m) and torch.equal(again.features, features)
        float_m = denoiser.predict(x, step, condition).m
        assert not torch.equal(m, float_m) and (m - float_m).std() < float_m.std()
        # The output layer on the features, which are on its grid already, gives m.
        assert features.shape[2:] == (x.shape[2] // side, x.shape[3] // side)
        operands = layer.operands(step.i)
        if isinstance(layer, QuantizedLinear):
            patches = layer.compute(features.movedim(1, -1), *operands).movedim(-1, 1)
        else:
            patches = layer.compute(features, *operands)
        torch.testing.assert_close(loaded.unpatched(patches), m, rtol=1e-5, atol=1e-6)
    assert (loaded.needs, loaded.classes) == (denoiser.needs, denoiser.classes)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_of_float_bits_changes_nothing(name):
    denoiser = denoiser_of(name)
    x, condition, sites = states_of(denoiser), condition_of(denoiser), denoiser.sites()
    plan = BitwidthPlan.by_step([{site.name: FLOAT for site in sites}])
    unchanged = quantize(denoiser, plan, InputObservations(sites, ACTIVATION), WEIGHT)
    assert torch.equal(unchanged.predict(x, STEPS[0], condition).m, denoiser.predict(x, STEPS[0], condition).m)
