"""A tiny float model and its quantized copy."""

import pytest

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.network import InputObservations, quantize
from tests.correction.pipelines import states
from tests.steps import at


@pytest.fixture(scope="session")
def quantized_copy(composed):
    """From a float model to its quantized copy, with weights of four bits."""
    cfg = composed(
        "+bitwidth=w4a8",
        "+quantizer@quantizer.weight=symmetric_per_channel",
        "+quantizer@quantizer.activation=affine_per_tensor",
    )

    def make(model, condition=None, x=None):
        observations = InputObservations(model.sites(), construct(cfg.quantizer.activation))
        with observations.observing(model.network):
            model.predict(states(model, 0) if x is None else x, at(500), condition)
        plan = construct(cfg.bitwidth).plan(model.architecture(), (), None)
        return quantize(model, plan, observations, construct(cfg.quantizer.weight))

    return make


@pytest.fixture(scope="session")
def pair(tiny_model_folder, quantized_copy):
    """A float model and its quantized copy."""
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    return model, quantized_copy(model)
