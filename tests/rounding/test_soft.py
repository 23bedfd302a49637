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


def test_the_penalty_is_of_undecided_integers_alone_and_waits_for_the_warmup():
    weight = draw(4, 5)
    soft = soft_of(weight, quantizer_of(weight, 4))
    assert soft.penalty(0.1, warmup=0.2) == 0
    early, late = soft.penalty(0.3, warmup=0.2), soft.penalty(0.9, warmup=0.2)
    assert early > late > 0, "the penalty sharpens from the ends of the interval to its middle"
    with torch.no_grad():
        soft.v.copy_(torch.where(soft.up() >= 0.5, 9.0, -9.0))
    assert soft.penalty(0.9, warmup=0.2) == 0
    integers = soft.integers()
    assert torch.equal((integers - soft.zero_point) * soft.scale, soft.values().detach())


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
