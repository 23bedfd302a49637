"""Operations beside a plan's: their total, and the room that they leave in a limit."""

import itertools
from dataclasses import replace

import pytest

from ptq_diffusion.bitwidth import Budget, Greedy, RandomBits
from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.bitwidth.cost import CostOutsidePlan, plan_cost
from ptq_diffusion.model.plan import LayerBits
from tests.bitwidth.networks import FIXED, LINE, sensitivity, table

STEPS = 4
ADDITIONS = [Additions(), Additions(macs=700), Additions(evaluations=2), Additions(macs=500, evaluations=1)]
WIDE = replace(LINE, sites=tuple(replace(site, input_size=site.macs // 50) for site in LINE.sites))
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


OUTSIDE_PLAN = {
    "equalised": CostOutsidePlan(equalised=[site.name for site in WIDE.sites]),
    "low rank": CostOutsidePlan(ranks={"a.conv": 1}),
    "both": CostOutsidePlan(["b.conv"], {"a.emb": 2}),
}


@pytest.mark.parametrize("over", ["layers_and_steps", "layers", "steps"])
@pytest.mark.parametrize("outside_plan", OUTSIDE_PLAN.values(), ids=OUTSIDE_PLAN)
@pytest.mark.parametrize("kind", [Budget, Greedy, RandomBits])
def test_a_plan_keeps_its_budgets_with_what_layers_compute_and_store_beside(kind, outside_plan, over):
    evidence = None if kind is RandomBits else sensitivity(WIDE, STEPS, OFFER["weights"], OFFER["activations"])
    alone = kind(saving=18, over=over, **OFFER)
    plans = [policy.plan(WIDE, table(STEPS), evidence) for policy in (alone, alone.counting_outside_plan(outside_plan))]
    cost = plan_cost(WIDE, plans[1], STEPS, outside_plan)
    assert plans[1].notes["bops"] == cost.bops and cost.bops * 18 <= cost.float_bops
    # The one that does not count it breaks its promise.
    assert plan_cost(WIDE, plans[0], STEPS, outside_plan).bops * 18 > cost.float_bops
    policy = kind(saving=None, bytes=-(-cost.stored_bits // 8), over=over, **OFFER).counting_outside_plan(outside_plan)
    assert (
        plan_cost(WIDE, policy.plan(WIDE, table(STEPS), evidence), STEPS, outside_plan).stored_bits <= 8 * policy.bytes
    )


@pytest.mark.parametrize("kind", [Budget, Greedy, RandomBits])
def test_bytes_that_tables_of_embeddings_spare_are_left_for_weights(kind):
    """100 numbers in 4 bits are 350 bytes less than in float."""
    weights, tables = [2, 3, 4, 8], CostOutsidePlan(embeddings=100, embedding_bits=4)
    evidence = None if kind is RandomBits else sensitivity(WIDE, STEPS, weights, [8])
    offer = {"saving": None, "weights": weights, "activations": [8], **FIXED}
    network = replace(WIDE, parameters=WIDE.parameters + 100)
    full = plan_cost(network, kind(bytes=1, **offer).uniform(network, LayerBits(3, 8)), STEPS).stored_bits // 8

    def plan(size, policy_of=lambda policy: policy):
        return policy_of(kind(bytes=size, **offer)).plan(network, table(STEPS), evidence)

    ours = plan(full - 350, lambda policy: policy.counting_outside_plan(tables))
    assert ours.weight == plan(full).weight
    assert plan_cost(network, ours, STEPS, tables).stored_bits <= 8 * (full - 350)
    with pytest.raises(ValueError, match="those of the cheapest plan, W2A8 in the inner layers, got"):
        plan(full - 350)


def test_layers_that_leave_no_room_are_refused():
    policy = Budget(saving=30, **OFFER).counting_outside_plan(CostOutsidePlan(["b.conv"], {"a.conv": 400}))
    with pytest.raises(
        ValueError, match=r"W4A3 in the inner layers with the factors of equalisation and the parts of low rank, got 30"
    ):
        policy.check(WIDE, table(STEPS))


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
