"""Networks whose inputs have several grids, or grids that are taken from each image at run time."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import (
    InputGrid,
    InputObservations,
    Rescaling,
    load_quantized,
    quantize,
    regridding,
    save_quantized,
)
from ptq_diffusion.network.backend.integer import Integer
from ptq_diffusion.network.onnx.step_values import step_values
from ptq_diffusion.quantizer import (
    AffineQuantizer,
    DynamicQuantizer,
    Log2Quantizer,
    MinMax,
    PerInputChannel,
    PerSkip,
    PerTensor,
    PerToken,
)
from tests.network.networks import ACTIVATION, WEIGHT, constant, quantized, states
from tests.steps import at

DYNAMIC_QUANTIZER = partial(DynamicQuantizer, symmetric=False, granularity=PerTensor())
DYNAMIC = {"dynamic_per_tensor": PerTensor(), "dynamic_per_token": PerToken(), "channels": None}


@pytest.mark.parametrize("granularity", DYNAMIC.values(), ids=DYNAMIC)
def test_several_grids_of_an_input_are_kept_and_left_by_rescalings(denoiser, tmp_path, granularity):
    """The images of dynamic grids do not depend on their neighbours."""

    def activation(bits):
        if granularity is None:
            return AffineQuantizer(bits, False, PerInputChannel(), MinMax(), 64)
        return DynamicQuantizer(bits, False, granularity)

    network = quantized(denoiser, LayerBits(8, 4), activation=activation)
    x, neighbours = states(denoiser), states(denoiser)
    neighbours[1:] *= 100
    m = network.predict(x, at(500.0)).m
    if granularity is not None:
        assert torch.equal(network.predict(neighbours, at(500.0)).m[0], m[0])
    static = partial(AffineQuantizer, symmetric=False, granularity=PerTensor(), range_search=MinMax(), bins=64)
    coarse = quantized(denoiser, LayerBits(8, 4), activation=static).predict(x, at(500.0)).m
    exact = quantized(denoiser, LayerBits(8, 32)).predict(x, at(500.0)).m
    assert 0 < (m - exact).square().mean() < (coarse - exact).square().mean()
    save_quantized(network, tmp_path)
    again = load_quantized(tmp_path)
    assert again.fingerprint() == network.fingerprint() and torch.equal(again.predict(x, at(500.0)).m, m)
    grids = {}
    with regridding(network.layers(), MinMax(), 0, grids):
        assert torch.equal(network.predict(x, at(500.0)).m, m) and not grids
    grid = InputGrid(torch.tensor([0.5]), torch.tensor([1], dtype=torch.int32))
    rescaling = Rescaling(torch.ones(8), torch.zeros(8), grid)
    with pytest.raises(ValueError, match=r"expected conv_in to quantize its input to one grid.*fit it for this"):
        network.rescaled([{"conv_in": rescaling}])
    with pytest.raises(TypeError, match="static ranges of a whole input at conv_in, which QuantizeLinear has, got"):
        step_values(network, 0)
    assert Integer().obstacle(network.layer("conv_in")) is not None
    gain = network.rescaled([{"conv_in": replace(rescaling, gain=torch.full((8,), 2.0), input_grid=None)}])
    assert not torch.equal(gain.predict(x, at(500.0)).m, m)


def test_layers_that_read_a_skip_have_two_grids(denoiser, tmp_path):
    """The others are those of one grid, and each part's is that of its own extremes."""

    def activation(granularity):
        return partial(AffineQuantizer, symmetric=False, granularity=granularity, range_search=MinMax(), bins=64)

    split, whole = (quantized(denoiser, LayerBits(8, 4), activation=activation(g)) for g in (PerSkip(), PerTensor()))
    skips = {site.name: site.skip for site in denoiser.sites() if site.skip}
    assert skips and all(name.startswith("up_blocks.") for name in skips)
    for name, layer in split.layers().items():
        assert layer.settings.groups == (2 if name in skips else 1)
        # A part's range lies within that of the whole.
        assert (layer.settings.scale <= whole.layer(name).settings.scale).all()
    save_quantized(split, tmp_path)
    again, x = load_quantized(tmp_path), states(denoiser)
    assert again.fingerprint() == split.fingerprint() != whole.fingerprint()
    assert torch.equal(again.predict(x, at(500.0)).m, split.predict(x, at(500.0)).m)


def test_softmax_outputs_have_quantizers_of_their_own(denoiser, tmp_path):
    attention = LayerBits(8, 4)
    names = {site.name: attention for site in denoiser.sites() if not site.weighted}
    plan = constant(denoiser, LayerBits(8, 8), **names)
    networks = {}
    for name, softmax in (("same", None), ("affine", ACTIVATION), ("log2", Log2Quantizer)):
        observations = InputObservations(denoiser.sites(), ACTIVATION, softmax=softmax)
        with observations.observing(denoiser.network):
            denoiser.predict(states(denoiser), at(500.0))
        networks[name] = quantize(denoiser, plan, observations, WEIGHT)
    assert networks["same"].fingerprint() == networks["affine"].fingerprint() != networks["log2"].fingerprint()
    forms = networks["log2"].forms()
    assert forms and all(name.endswith(".p") and form == {"form": "log2"} for name, form in forms.items())
    save_quantized(networks["log2"], tmp_path)
    again, x = load_quantized(tmp_path), states(denoiser)
    assert torch.equal(again.predict(x, at(500.0)).m, networks["log2"].predict(x, at(500.0)).m)
    assert not torch.equal(again.predict(x, at(500.0)).m, networks["same"].predict(x, at(500.0)).m)


@pytest.mark.parametrize(
    ("activation", "softmax", "message"),
    [
        (Log2Quantizer, None, "may be negative, got a Log2Quantizer.*quantizer@quantizer.softmax"),
        (DYNAMIC_QUANTIZER, ACTIVATION, "needs no calibration.*choose quantizer@quantizer.softmax=log2"),
        (ACTIVATION, WEIGHT, r"quantizer of activations, got one with PerChannel\(axis=0\)"),
    ],
)
def test_quantizers_that_do_not_fit_are_refused(denoiser, activation, softmax, message):
    with pytest.raises(ValueError, match=message):
        InputObservations(denoiser.sites(), activation, softmax=softmax)
