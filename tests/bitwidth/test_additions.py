"""Operations beside a plan's: their total, and the room that they leave in a limit."""

import itertools

import pytest

from ptq_diffusion.bitwidth import Budget, Greedy, RandomBits
from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.bitwidth.cost import plan_cost
from tests.bitwidth.networks import FIXED, LINE, sensitivity, table

STEPS = 4
ADDITIONS = [Additions(), Additions(macs=700), Additions(evaluations=2), Additions(macs=500, evaluations=1)]
OFFER = {"weights": [4], "activations": [3, 4, 6, 8]} | FIXED


@pytest.mark.parametrize(("macs", "evaluations", "steps"), [*itertools.product([0, 3], [0, 1, 5], [1, 3, 7])])
def test_room_is_the_most_that_a_limit_leaves(macs, evaluations, steps):
    additions = Additions(macs, evaluations)
    for limit in range(macs * 1024, macs * 1024 + 60):
        room = additions.room(limit, steps)
        assert additions.total(room, steps) <= limit < additions.total(room + 1, steps)
    assert additions.room(macs * 1024 - 1, steps) < 0


@pytest.mark.parametrize("additions", ADDITIONS)
@pytest.mark.parametrize("kind", [Budget, Greedy, RandomBits])
def test_a_plan_keeps_its_saving_with_the_correction_behind_it(kind, additions):
    evidence = None if kind is RandomBits else sensitivity(LINE, STEPS, OFFER["weights"], OFFER["activations"])
    policy = kind(saving=28, count_correction=True, **OFFER).behind(additions)
    plan = policy.plan(LINE, table(STEPS), evidence)
    cost = plan_cost(LINE, plan, STEPS)
    assert plan.notes["bops_with_correction"] == additions.total(cost.bops, STEPS)
    assert additions.total(cost.bops, STEPS) * 28 <= cost.float_bops
    # Bits are whole steps, so a plan is near its budget and not at it.
    assert additions.total(cost.bops, STEPS) * 28 > 0.9 * cost.float_bops
    alone = kind(saving=28, **OFFER).plan(LINE, table(STEPS), evidence)
    assert "bops_with_correction" not in alone.notes
    assert (alone.activation == plan.activation) == (additions == Additions())


def test_counting_alone_changes_no_plan():
    evidence = sensitivity(LINE, STEPS, OFFER["weights"], OFFER["activations"])
    plans = [
        Budget(saving=30, count_correction=count, **OFFER).plan(LINE, table(STEPS), evidence) for count in (False, True)
    ]
    assert (plans[0].weight, plans[0].activation) == (plans[1].weight, plans[1].activation)


def test_a_correction_that_leaves_no_room_is_refused():
    policy = Budget(saving=30, count_correction=True, **OFFER).behind(Additions(macs=10**6))
    most = r"saving of at most [\d.]+, that of the cheapest plan, W4A3 in the inner layers, and the correction, got 30"
    with pytest.raises(ValueError, match=most):
        policy.check(LINE, table(STEPS))
