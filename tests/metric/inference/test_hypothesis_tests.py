"""Adjusted p-values, by hand."""

import itertools

import pytest

from ptq_diffusion.metric import Interval, holm, noninferiority


def test_holm_by_hand_in_any_order():
    p, adjusted = [0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]
    for order in itertools.permutations(range(4)):
        found = holm([p[place] for place in order])
        assert found == pytest.approx([adjusted[place] for place in order])
    assert holm([0.2]) == [0.2] and holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_not_worse_is_certain_far_below_the_margin_and_never_above_it():
    assert noninferiority(Interval(0.1, 0.05, None), 0.1) == pytest.approx(0.5)
    assert noninferiority(Interval(0.1 - 1.6449 * 0.05, 0.05, None), 0.1) == pytest.approx(0.05, abs=1e-4)
    found = [noninferiority(Interval(gap, 0.05, None), 0.1) for gap in (-0.2, 0.0, 0.05, 0.15, 0.3)]
    assert found == sorted(found) and found[0] < 1e-6 and found[-1] > 0.999
    assert noninferiority(Interval(0.0, 0.0, None), 0.1) == 0 and noninferiority(Interval(0.1, 0.0, None), 0.1) == 1
