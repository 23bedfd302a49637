"""Integers that are undecided, and the descent that decides them."""

import pytest
import torch

from ptq_diffusion.rounding import AdaRound, Descent, Inputs, UniformSteps
from ptq_diffusion.rounding.soft import SoftIntegers
from tests.rounding.problems import GRIDS, SHAPE, correlated, draw, quantizer_of

INPUTS = Inputs("float", "weight", False, UniformSteps())


def soft_of(weight, quantizer):
    return SoftIntegers(weight, *quantizer.spread(weight), quantizer.grid)


@pytest.mark.parametrize(("symmetric", "granularity"), GRIDS)
def test_undecided_integers_start_at_the_float_weight_and_are_decided_as_nearest(symmetric, granularity):
    extremes = draw(*SHAPE)
    quantizer = quantizer_of(extremes, 4, symmetric, granularity)
    weight = 0.8 * extremes  # Within the grid, whose zero point is a whole number.
    soft = soft_of(weight, quantizer)
    assert torch.allclose(soft.values(), weight, atol=1e-5)
    assert torch.equal(soft.integers(), quantizer.to_integers(weight))


@pytest.mark.parametrize(("symmetric", "granularity"), GRIDS)
def test_the_descent_ends_at_the_integer_below_or_above_with_none_undecided(symmetric, granularity):
    weight = draw(8, 20)
    quantizer = quantizer_of(weight, 3, symmetric, granularity)
    scale, zero_point = quantizer.spread(weight)
    rounding = AdaRound(INPUTS, Descent(300, 0.1, 3.0))
    integers = rounding.integers(weight, quantizer, correlated(20))
    below = ((weight / scale).floor() + zero_point).int()
    low, high = quantizer.grid.low, quantizer.grid.high
    up = (integers == (below + 1).clamp(low, high)) & (integers != below.clamp(low, high))
    assert ((integers == below.clamp(low, high)) | up).all()
    nearest = quantizer.to_integers(weight)
    assert 0.03 < (integers != nearest).float().mean() < 0.7, "it is not nearest"


def test_the_gradient_is_that_of_values_and_of_a_penalty_of_undecided_integers_alone():
    weight = draw(4, 5)
    soft, by_values = soft_of(weight, quantizer_of(weight, 4)), draw(4, 5)
    with torch.no_grad():
        soft.v.add_(draw(4, 5))
    up = (torch.sigmoid(soft.v) * 1.2 - 0.1).clamp(0, 1)
    values = (soft.below + up).clamp(soft.low, soft.high) * soft.scale
    loss = (by_values * values).sum() + 3.0 * (1 - (2 * up - 1).abs().pow(7.5)).mean()
    (gradient,) = torch.autograd.grad(loss, soft.v)
    assert torch.equal(soft.values(), values.detach())
    assert torch.allclose(soft.gradient(by_values, 3.0, 7.5), gradient, rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        soft.v.copy_(torch.where(soft.up() >= 0.5, 9.0, -9.0))
    assert not soft.gradient(by_values, 3.0, 7.5).any(), "decided integers are left alone"
    integers = soft.integers()
    assert torch.equal((integers - soft.zero_point) * soft.scale, soft.values())


def test_the_penalty_waits_for_the_warmup_and_sharpens_from_the_ends_of_the_interval_to_its_middle():
    weight = draw(4, 5)
    soft, zero = soft_of(weight, quantizer_of(weight, 4)), torch.zeros(4, 5)
    descent = Descent(10, 0.1, 3.0, warmup=0.2)
    assert not descent.gradient(soft, zero, 1, 1.0).any()
    with torch.no_grad():
        soft.v.fill_(0.3)
    early, late = (float(descent.gradient(soft, zero, iteration, 1.0).abs().sum()) for iteration in (3, 9))
    assert 0 < early < late, "near the middle"
    assert torch.allclose(descent.gradient(soft, zero, 9, 0.5).abs().sum(), torch.tensor(late / 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 0.1, 1.0), "at least 1 iteration"),
        ((5, 0.0, 1.0), "a positive learning_rate"),
        ((5, 0.1, -1.0), "a penalty of at least 0"),
        ((5, 0.1, 1.0, 1.0), "a warmup of 0 up to 1"),
    ],
)
def test_a_descent_that_decides_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Descent(*options)
