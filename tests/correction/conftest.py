"""A tiny float model and its quantized copy."""

import pytest

from ptq_diffusion.engine.workshop import build_quantizers
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.network import observing, quantize
from tests.correction.pipelines import states
from tests.steps import at


@pytest.fixture(scope="module")
def calibrated(composed):
    """From a float model to quantizers with weights of four bits."""
    cfg = composed(
        "+bitwidth=w4a8",
        "+quantizer@quantizer.weight=symmetric_per_channel",
        "+quantizer@quantizer.activation=affine_per_tensor",
    )

    def make(model):
        quantizers = build_quantizers(cfg, model)
        quantizers.observe_weights(model.network)
        with observing(model.network, quantizers):
            model.predict(states(model, 0), at(500))
        quantizers.freeze()
        return quantizers

    return make


@pytest.fixture(scope="module")
def quantized_copy(calibrated):
    """From a float model to its quantized copy."""
    return lambda model: model.with_network(quantize(model.network, calibrated(model)))


@pytest.fixture(scope="module")
def pair(tiny_model_folder, quantized_copy):
    """A float model and its quantized copy."""
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    return model, quantized_copy(model)
