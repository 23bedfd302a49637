"""Rules for shifts: where they put channels, and that they follow an input that moves."""

import pytest
import torch

from ptq_diffusion.quantizer import NO_SHIFT, MeanShift, MidRangeShift

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
