"""Products of a CUDA GPU are tried before they are used, and equal simulation there."""

import copy

import pytest
import torch

from ptq_diffusion.network import Integer
from ptq_diffusion.network.backend.on_cuda import OnCuda, multiplied_into_float32
from tests.network.backend.layers import EXACT, KINDS, LAYERS, PROVIDERS, difference, layer_of


def test_products_of_a_gpu_that_are_missing_or_wrong_are_refused_with_one_line():
    device, multiply = torch.device("cpu"), PROVIDERS[1].multiply
    PROVIDERS[1].require(device)
    for product, complaint in (
        (lambda *operands: multiply(*operands).bfloat16(), "off by up to"),
        (multiplied_into_float32, "got NotImplementedError"),
    ):
        with pytest.raises(RuntimeError, match=f"multiply 8-bit .* on cpu, .*{complaint}.*set backend=simulated"):
            OnCuda(product).require(device)


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_layer_on_a_gpu_equals_its_simulation_on_the_cpu(name, kinds):
    for weight_bits, input_bits in ((4, 8), (8, 4)):
        simulated, x = layer_of(name, weight_bits, input_bits, kinds)
        integer = Integer().layer(copy.deepcopy(simulated)).to("cuda")
        for i in (0, 1):
            simulated.current.i = integer.current.i = i
            assert difference(integer(x.to("cuda")).cpu(), simulated(x)) < EXACT, (weight_bits, input_bits)
