"""Powers of two: exact on themselves, a factor of at most the square root of 2 elsewhere, and zero."""

import math

import pytest
import torch

from ptq_diffusion.numeric.packing import pack, unpack
from ptq_diffusion.quantizer import Log2Quantizer, described_form

P = torch.rand(4, 50, 60, generator=torch.Generator().manual_seed(0)).mul(12).softmax(-1)
BITS = pytest.mark.parametrize("bits", range(2, 9))


def frozen(bits):
    quantizer = Log2Quantizer(bits)
    quantizer.observe(1000 * P)
    quantizer.freeze()
    return quantizer


@BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_is_what_the_integers_stand_for_after_packing_too(bits, dtype):
    quantizer, p = frozen(bits), P.to(dtype)
    integers = quantizer.to_integers(p)
    assert integers.dtype == torch.int32 and 0 <= integers.min() and integers.max() <= 2**bits - 1
    again = unpack(pack(integers, bits), bits, p.shape)
    assert quantizer(p).dtype == dtype and torch.equal(quantizer(p), quantizer.from_integers(again).to(dtype))
    form = described_form(quantizer.form.description())
    assert torch.equal(form.fake_quantized(p, quantizer.grid, quantizer.scale, quantizer.zero_point), quantizer(p))


@BITS
def test_values_are_powers_of_two_and_keep_order(bits):
    quantizer = frozen(bits)
    line = torch.cat([torch.zeros(1), torch.logspace(-40, 0, 500)])
    quantized = quantizer(line)
    assert torch.equal(quantizer(quantized), quantized) and (quantized.diff() >= 0).all()
    assert quantized[0] == 0 and quantized[-1] == 1
    covered = quantized > 0
    ratio = (quantized / line)[covered]
    assert ((ratio <= math.sqrt(2) + 1e-4) & (ratio >= math.sqrt(0.5) - 1e-4)).all()
    # Beyond the largest number there is nothing, and negative numbers have no value.
    assert quantizer(torch.tensor([-1.0, 3.0])).tolist() == [0, 1]


def test_the_error_falls_with_the_bits():
    errors = [float((frozen(bits)(P) - P).square().mean()) for bits in (2, 3, 4)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]


@BITS
def test_a_gradient_passes_where_a_power_is_near(bits):
    p = torch.tensor([2.0, 1.0, 0.3, 2.0 ** -(2**bits - 2) if bits < 7 else 0.25, 2.0**-140, 0.0], requires_grad=True)
    quantizer = frozen(bits)
    quantized = quantizer(p)
    assert torch.equal(quantized, quantizer(p.detach()))
    quantized.sum().backward()
    assert p.grad.tolist() == [0, 1, 1, 1, float(bits == 8), 0]
