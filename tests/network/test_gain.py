"""Gains by both rules: equal outputs, outputs without noise, noisy outputs, and moments of steps pooled."""

import pytest
import torch

from ptq_diffusion.network import DeviationRatio, LeastSquares, Spread

RULES = [DeviationRatio(), LeastSquares()]
SHAPES = [((40, 3, 5, 6), 1), ((40, 3), -1), ((40, 5, 3), -1)]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
every_shape = pytest.mark.parametrize(("shape", "channels"), SHAPES)


def drawn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def noisy(shape, channels):
    """A float output, and a quantized one with independent noise."""
    m = drawn(shape)
    return m, m + drawn(shape, 1)


def compared(rule, m, y, channels):
    return rule.target(m, channels).compared(y)


@every_rule
@every_shape
def test_equal_outputs_have_gain_1_and_offset_0(rule, shape, channels):
    m = drawn(shape)
    rescaling = compared(rule, m, m.clone(), channels).rescaling()
    assert torch.allclose(rescaling.gain, torch.ones(3), atol=1e-6)
    assert torch.allclose(rescaling.offset, torch.zeros(3), atol=1e-5)


@every_rule
@every_shape
def test_another_scale_and_mean_without_noise_are_taken_back(rule, shape, channels):
    m = drawn(shape)
    rescaling = compared(rule, m, 0.5 * m - 3, channels).rescaling()
    assert torch.allclose(rescaling.of(0.5 * m - 3, channels), m, atol=1e-4)


@every_shape
def test_a_regression_has_the_least_error_and_the_ratio_keeps_the_deviation(shape, channels):
    m, y = noisy(shape, channels)
    ratio, slope = (compared(rule, m, y, channels).rescaling() for rule in RULES)
    errors = {}
    for name, rescaling in (("ratio", ratio), ("slope", slope)):
        for factor in (0.95, 1.0, 1.05):
            gain = factor * rescaling.gain
            moved = type(rescaling)(gain, rescaling.offset + (rescaling.gain - gain) * Spread.of(y, channels).mean)
            errors[name, factor] = (moved.of(y, channels).float() - m).square().mean()
    assert min(errors, key=errors.get) == ("slope", 1.0)
    of_m, of_ratio, of_slope = (Spread.of(x, channels) for x in (m, ratio.of(y, channels), slope.of(y, channels)))
    assert torch.allclose(of_ratio.deviation, of_m.deviation, rtol=1e-4)
    assert torch.allclose(of_ratio.mean, of_m.mean, atol=1e-4) and torch.allclose(of_slope.mean, of_m.mean, atol=1e-4)
    correlation = slope.gain / ratio.gain
    assert bool((correlation < 0.95).all())
    assert torch.allclose(of_slope.deviation, correlation * of_m.deviation, rtol=1e-4)


def test_noise_dilutes_a_slope_by_its_share_of_the_variance():
    m, e = drawn((4000, 2), 2), 0.5 * drawn((4000, 2), 3)
    slope = compared(LeastSquares(), m, m + e, -1).rescaling().gain
    assert torch.allclose(slope, m.var(0) / (m.var(0) + e.var(0)), atol=0.02)


@every_rule
@pytest.mark.parametrize("y", [torch.full((40, 3), 7.0), drawn((40, 3)) / 100], ids=["constant", "hardly varying"])
def test_a_channel_of_another_magnitude_keeps_its_scale_and_gets_the_mean(rule, y):
    m = drawn((40, 3))
    rescaling = compared(rule, m, y, -1).rescaling()
    assert torch.equal(rescaling.gain, torch.ones(3))
    assert torch.allclose(rescaling.of(y, -1).mean(0), m.mean(0), atol=1e-5)


def test_a_channel_that_says_the_opposite_is_not_turned_around():
    m = drawn((40, 3))
    assert torch.equal(compared(LeastSquares(), m, -m, -1).rescaling().gain, torch.ones(3))


@every_rule
@every_shape
def test_pooled_steps_are_their_outputs_together_and_one_step_is_itself(rule, shape, channels):
    m, y = noisy(shape, channels)
    m, y = (x + torch.arange(4).repeat_interleave(10).view(-1, *[1] * (x.ndim - 1)) for x in (m, y))
    steps = [compared(rule, *part, channels) for part in zip(m.chunk(4), y.chunk(4), strict=True)]
    pooled, together = type(steps[0]).pooled(steps).rescaling(), compared(rule, m, y, channels).rescaling()
    assert torch.allclose(pooled.gain, together.gain, rtol=1e-4)
    assert torch.allclose(pooled.offset, together.offset, atol=1e-4)
    own, alone = steps[1].rescaling(), type(steps[1]).pooled([steps[1]]).rescaling()
    assert torch.equal(own.gain, alone.gain) and torch.equal(own.offset, alone.offset)
    assert not torch.allclose(own.gain, pooled.gain, rtol=1e-3)


@every_rule
def test_targets_are_equal_where_their_numbers_are_and_hold_them_whatever_becomes_of_the_output(rule):
    m = drawn((40, 3))
    target = rule.target(m, -1)
    m += 1
    assert not target.equals(rule.target(m, -1))
    others = [other.target(drawn((40, 3)), -1) for other in RULES if other is not rule]
    assert target.equals(rule.target(drawn((40, 3)), -1)) and not any(map(target.equals, others))
