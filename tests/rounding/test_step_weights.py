"""How much the error of a step counts."""

import math

import pytest
import torch

from ptq_diffusion.model import GaussianDenoiser
from ptq_diffusion.rounding import EffectOnImage, SoftmaxOfEffect, UniformSteps
from ptq_diffusion.sampler import DDIM

MODEL = GaussianDenoiser((1, 4, 4), mean=0.3, std=0.5)
TABLE = DDIM(4, 0.0).table(MODEL.scheduler_config)
STATES = [(step.i, torch.ones(3, 1, 4, 4).double(), None) for step in TABLE] * 2


def exact_effects():
    """b^2 times the squared derivative of x_0 by the step's result, which for Gaussian data is one number."""
    zero, one = torch.zeros(1, 1, 1, 1).double(), torch.ones(1, 1, 1, 1).double()
    slopes = [
        step.carry + step.gain * float(MODEL.predict(one, step).m - MODEL.predict(zero, step).m) for step in TABLE
    ]
    return torch.tensor([step.gain**2 * math.prod(slopes[step.i + 1 :]) ** 2 for step in TABLE]).double()


def test_a_step_counts_as_what_an_error_of_its_output_does_to_the_image():
    effects = exact_effects()
    assert torch.allclose(EffectOnImage(2).effects(MODEL, TABLE, STATES), effects, rtol=1e-5)
    assert torch.allclose(EffectOnImage(2).of(MODEL, TABLE, STATES), effects / effects.sum(), rtol=1e-5)
    soft = SoftmaxOfEffect(0.5, 2).of(MODEL, TABLE, STATES)
    assert torch.allclose(soft, torch.softmax(effects / effects.mean() / 0.5, 0), rtol=1e-4)


def test_weights_sum_to_1_and_a_hot_softmax_is_uniform():
    uniform = UniformSteps().of(MODEL, TABLE, STATES)
    assert torch.equal(uniform, torch.full((4,), 0.25).double())
    assert torch.allclose(SoftmaxOfEffect(1e9).of(MODEL, TABLE, STATES), uniform)
    assert float(SoftmaxOfEffect(1e-3).of(MODEL, TABLE, STATES).max()) > 0.999


def test_states_of_some_steps_are_refused():
    with pytest.raises(ValueError, match="expected states of all 4 steps, got those of 1"):
        EffectOnImage().of(MODEL, TABLE, STATES[:1])


@pytest.mark.parametrize(
    ("rule", "message"),
    [(lambda: EffectOnImage(0), "at least 1 image"), (lambda: SoftmaxOfEffect(0.0), "a positive temperature")],
)
def test_rules_that_measure_nothing_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        rule()
