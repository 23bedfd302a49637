"""Rules for shifts: where they put channels, and that they follow an input that moves."""

import pytest
import torch

from ptq_diffusion.network import InputGrid
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import NO_SHIFT, Dither, MeanShift, MidRangeShift, MinMax

RULES = [MidRangeShift(), MeanShift()]


def rows(seed):
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(seed)).exp()


@pytest.mark.parametrize("rule", [NO_SHIFT, *RULES], ids=lambda rule: type(rule).__name__)
def test_a_rule_says_whether_it_shifts(rule):
    assert rule.of(rows(0)).shape == (6,) and rule.shifts == bool(rule.of(rows(0)).any())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_shifted_channels_need_no_further_shift_and_one_follows_its_input(rule):
    x, by = rows(1), torch.linspace(-9, 9, 6)
    assert torch.allclose(rule.of(x - rule.of(x)), torch.zeros(6), atol=1e-5)
    assert torch.allclose(rule.of(x + by), rule.of(x) + by, atol=1e-5)


def test_a_middle_halves_the_range_and_a_mean_the_weight():
    x = rows(2)
    around = x - MidRangeShift().of(x)
    assert torch.allclose(around.amax(0), -around.amin(0), atol=1e-5)
    assert torch.allclose((x - MeanShift().of(x)).sum(0), torch.zeros(6), atol=1e-4)


def test_a_dither_is_around_another_rule():
    for rule in (NO_SHIFT, *RULES):
        assert torch.equal(Dither(rule).of(rows(0)), rule.of(rows(0))) and Dither(rule).shifts
        assert rule.fractions(3, 6) is None


def test_a_dither_around_a_dither_is_refused():
    with pytest.raises(ValueError, match="got another dither; leave out around"):
        Dither(Dither())


def test_a_dither_fills_a_step_of_the_grid_evenly_in_steps_and_channels():
    parts = torch.stack([Dither().fractions(i, 40) for i in range(20)])
    assert (parts >= -0.5).all() and (parts < 0.5).all()
    for few in (parts.T, parts):
        gaps = few.sort(1).values.diff(dim=1)
        assert gaps.max() < 3 / few.shape[1], "no part of a step is left out by long, in steps or in channels"


def test_errors_of_a_dithered_input_do_not_add_up_over_steps():
    """Of one input on a grid of its own at every step, whose undithered errors are the same at all."""
    steps, grid = 16, Grid(4, False)
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(4))
    plain = InputGrid.of(x, grid, MinMax())
    dithered = (
        InputGrid.of(x, grid, MinMax(), Dither().fractions(i, 8).float() * plain.scale).fake_quantized(x, grid) - x
        for i in range(steps)
    )
    together = sum(dithered) / steps
    alone = plain.fake_quantized(x, grid) - x
    assert together.square().mean() < 0.2 * alone.square().mean(), "of 16 steps at most 3 are alike"
