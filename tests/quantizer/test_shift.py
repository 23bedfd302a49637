"""Rules for shifts: where they put channels, and that they follow an input that moves."""

import pytest
import torch

from ptq_diffusion.network import InputGrid
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import NO_SHIFT, Dither, MeanShift, MidRangeShift, MinMax

RULES = [MidRangeShift(), MeanShift()]


def rows(seed):
    return torch.randn(50, 6, generator=torch.Generator().manual_seed(seed)).exp()


@pytest.mark.parametrize("rule", [NO_SHIFT, *RULES, Dither()], ids=lambda rule: type(rule).__name__)
def test_a_rule_says_whether_it_shifts(rule):
    assert rule.of(rows(0), 3, 4).shape == (6,) and rule.shifts == bool(rule.of(rows(0), 3, 4).any())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_shifted_channels_need_no_further_shift_and_one_follows_its_input(rule):
    x, by = rows(1), torch.linspace(-9, 9, 6)
    assert torch.allclose(rule.of(x - rule.of(x, 3, 4), 3, 4), torch.zeros(6), atol=1e-5)
    assert torch.allclose(rule.of(x + by, 3, 4), rule.of(x, 3, 4) + by, atol=1e-5)


def test_a_middle_halves_the_range_and_a_mean_the_weight():
    x = rows(2)
    around = x - MidRangeShift().of(x, 3, 4)
    assert torch.allclose(around.amax(0), -around.amin(0), atol=1e-5)
    assert torch.allclose((x - MeanShift().of(x, 3, 4)).sum(0), torch.zeros(6), atol=1e-4)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_dither_fills_a_step_of_the_grid_evenly_in_steps_and_channels(bits):
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(3))
    step = (x.max() - x.min()) / (2**bits - 1)
    parts = torch.stack([Dither().of(x, i, bits) for i in range(20)]) / step + 0.5
    assert (parts >= 0).all() and (parts <= 1).all()
    for few in (parts.T, parts):
        gaps = few.sort(1).values.diff(dim=1)
        assert gaps.max() < 3 / few.shape[1], "no part of a step is left out by long, in steps or in channels"


def test_errors_of_a_dithered_input_do_not_add_up_over_steps():
    """Of one input on a grid of its own at every step, whose undithered errors are the same at all."""
    generator, steps, bits = torch.Generator().manual_seed(4), 16, 4
    x = torch.randn(2000, 8, generator=generator)
    errors = []
    for i in range(steps):
        m = Dither().of(x, i, bits)
        grid = InputGrid.of(x, Grid(bits, False), MinMax(), m)
        errors.append(grid.fake_quantized(x, Grid(bits, False)) - x)
    alone = InputGrid.of(x, Grid(bits, False), MinMax()).fake_quantized(x, Grid(bits, False)) - x
    together = torch.stack(errors).mean(0).square().mean()
    assert together < 0.2 * alone.square().mean(), "of 16 steps at most 3 are alike"
