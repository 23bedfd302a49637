"""PTQD's rule by hand, its monotony in the bits, and the published shares."""

import pytest
import torch

from ptq_diffusion.bitwidth import Share, StepSignal, StepSNR
from ptq_diffusion.model.plan import LayerBits
from tests.bitwidth.networks import EIGHT, FIXED, LINE, signal, table

W4A4, W4A8, W8A8 = ({"weight": w, "activation": a} for w, a in ((4, 4), (4, 8), (8, 8)))
OFFERED = [W4A4, W4A8, W8A8]


def chosen(policy, steps, evidence):
    """The bits of an inner layer at every step, by their place among those offered."""
    plan = policy.plan(LINE, steps, evidence)
    bits = [plan.at("a.conv", i) for i in range(len(steps))]
    assert bits == [plan.at("b.conv", i) for i in range(len(steps))]
    return [policy.offered.index(pair) for pair in bits]


def measured(power, policy):
    """A measurement with these ratios of powers, (offers, steps)."""
    power = torch.tensor(power).double()
    return StepSignal(policy.offered, torch.full_like(power, 3.0), 3 / power, "n", "t")


def test_the_rule_by_hand():
    """|m| / |D| is 2 and 10, so their squares 4 and 100, at four steps of SNR_F 1, 3, 9 and 50."""
    steps = table(4, snr=[1.0, 3.0, 9.0, 50.0])
    for ratio, expected in (("norm", [0, 1, 1, 1]), ("power", [0, 0, 1, 1])):
        policy = StepSNR([W4A4, W4A8], ratio, **FIXED)
        assert chosen(policy, steps, measured([[4.0] * 4, [100.0] * 4], policy)) == expected


def test_the_most_bits_stand_in_where_none_suffice_and_equal_is_not_above():
    policy = StepSNR(OFFERED, "power", **FIXED)
    evidence = measured([[1.0] * 3, [2.0] * 3, [4.0] * 3], policy)
    assert chosen(policy, table(3, snr=[1.0, 2.0, 1e9]), evidence) == [1, 2, 2]


def test_every_step_is_judged_by_its_own_measurement():
    policy = StepSNR(OFFERED, "power", **FIXED)
    evidence = measured([[9.0, 1.0, 1.0], [9.0, 9.0, 1.0], [9.0, 9.0, 9.0]], policy)
    assert chosen(policy, table(3, snr=[5.0] * 3), evidence) == [0, 1, 2]


@pytest.mark.parametrize("ratio", ["norm", "power"])
def test_noise_that_falls_with_the_bits_asks_for_more_bits_as_the_forward_process_clears(ratio):
    policy = StepSNR(OFFERED, ratio, **FIXED)
    places = chosen(policy, table(30), signal(policy.offered, 30))
    assert places == sorted(places) and set(places) == {0, 1, 2}
    quiet = signal(policy.offered, 30)
    noisier = StepSignal(policy.offered, quiet.signal, quiet.error * 5, "n", "t")
    assert all(a <= b for a, b in zip(places, chosen(policy, table(30), noisier), strict=True))


def test_offers_without_error_suffice_everywhere():
    policy = StepSNR([W4A4, {"weight": 32, "activation": 32}], "norm", **FIXED)
    evidence = StepSignal(policy.offered, torch.ones(2, 1).double(), torch.tensor([[1.0], [0.0]]).double(), "n", "t")
    assert chosen(policy, table(1, snr=[1e30]), evidence) == [1]


def test_weights_of_two_bitwidths_are_two_copies():
    policy = StepSNR([W4A4, W8A8], "norm", **FIXED)
    plan = policy.plan(LINE, table(9), signal(policy.offered, 9))
    assert plan.weight_copies("a.conv") == (4, 8) and plan.weight_copies("in") == (8,)


@pytest.mark.parametrize("offered", [[], [W8A8, W4A4], [W4A8, {"weight": 8, "activation": 4}]])
def test_offers_that_do_not_ascend_are_refused(offered):
    with pytest.raises(ValueError, match="expected offered bits in ascending order"):
        StepSNR(offered, "norm", **FIXED)


def test_a_measurement_that_lacks_something_is_refused():
    policy = StepSNR([W4A4, W4A8], "norm", **FIXED)
    with pytest.raises(ValueError, match="expected a measurement of 3 steps, got one of 4; measure again"):
        policy.plan(LINE, table(3), signal(policy.offered, 4))
    with pytest.raises(ValueError, match="expected a measurement with W4A8, got none"):
        policy.plan(LINE, table(3), signal([LayerBits(4, 4)], 3))


@pytest.mark.parametrize(
    ("share", "steps", "early"),
    [
        (0.192, 250, 48),
        (0.25, 20, 5),
        (0.225, 200, 45),
        (0.225, 20, 5),  # a half goes up
        (0.27, 500, 135),
        (0.27, 20, 5),
        (0.0, 7, 0),
        (1.0, 7, 7),
        (0.49, 1, 0),
        (0.5, 1, 1),
    ],
)
def test_a_share_of_the_steps_comes_first(share, steps, early):
    plan = Share(share, W4A4, W4A8, **FIXED).plan(LINE, table(steps), None)
    activations = [plan.at("b.conv", i).activation for i in range(steps)]
    assert activations == [4] * early + [8] * (steps - early)
    assert all(plan.at("in", i) == LayerBits(8, 8) for i in range(steps))
    assert plan.weight_copies("b.conv") == (4,)


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ValueError, match="expected a share of the steps from 0 to 1"):
        Share(share, W4A4, EIGHT, **FIXED)
