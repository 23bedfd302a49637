"""A quantized network, and the folder that it is saved in."""

import pytest

from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import save_quantized
from tests.network.networks import quantized


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


@pytest.fixture(scope="module")
def origin(denoiser):
    return quantized(denoiser, LayerBits(4, 6))


@pytest.fixture(scope="module")
def saved(origin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_quantized(origin, folder)
    return folder
