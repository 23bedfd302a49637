"""Rounding with the gradient of no rounding."""

import pytest
import torch

from ptq_diffusion.numeric.rounding import straight_through

VALUES = torch.tensor([-2.5, -1.5, -0.5, -0.0, 0.0, 0.5, 1.5, 2.5, 0.3, -0.7, 2.0**23 + 1, 3e38, torch.inf, -torch.inf])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_values_are_those_of_rounding_bit_for_bit(dtype):
    x = VALUES.to(dtype)
    assert torch.equal(straight_through(x), x.round())
    assert torch.equal(straight_through(x).signbit(), x.round().signbit())
    assert straight_through(x).dtype == dtype and torch.equal(x, VALUES.to(dtype))


def test_the_gradient_is_that_of_the_identity():
    """Whatever stands around it: d/dx f(round(g(x))) = f'(round(g(x))) g'(x)."""
    x = VALUES[:10].clone().requires_grad_()
    straight_through(3 * x).square().sum().backward()
    assert torch.equal(x.grad, 2 * (3 * x.detach()).round() * 3)
