"""The knapsack's optimum is that of an enumeration, keeps its budget exactly, and no other way predicts less damage."""

import itertools
import re

import pytest

from ptq_diffusion.bitwidth import Budget, Greedy, RandomBits, budget
from ptq_diffusion.bitwidth.budget import GAP
from ptq_diffusion.bitwidth.cost import plan_cost
from ptq_diffusion.model import Role
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from tests.bitwidth.networks import FIXED, LINE, architecture, sensitivity, site, table

OVERS = ("layers_and_steps", "layers", "steps")
every_over = pytest.mark.parametrize("over", OVERS)
THREE = architecture(
    site("a", macs=1_000, size=(3, 5)),
    site("b", macs=1_700, size=(7, 2)),
    site("c", macs=300, size=(2, 2)),
    attention=3,
    others=11,
)


def options(**changes):
    return (
        {"saving": None, "bytes": None, "over": "layers_and_steps", "weights": [4], "activations": [3, 4, 8]}
        | FIXED
        | changes
    )


def damage(plan, evidence, network, steps):
    """The sum over the inner layers and all steps."""
    total = 0.0
    for place, site_ in enumerate(network.sites):
        if site_.role is Role.INNER:
            for i in range(steps):
                bits = plan.at(site_.name, i)
                total += float(evidence.weight[place, i, evidence.weight_bits.index(bits.weight)])
                total += float(evidence.activation[place, i, evidence.activation_bits.index(bits.activation)])
    return total


def kept(plan, network, steps, saving=None, bytes=None, **_):
    cost = plan_cost(network, plan, steps)
    return (saving is None or cost.bops * saving <= cost.float_bops) and (
        bytes is None or cost.stored_bits <= 8 * bytes
    )


def plans(network, steps, over, weights, activations, **_):
    """Every plan that there is."""
    names = [site_.name for site_ in network.sites]
    rows = [tuple(names)] if over == "steps" else [(name,) for name in names]
    columns = [tuple(range(steps))] if over == "layers" else [(i,) for i in range(steps)]
    for weight in itertools.product(weights, repeat=len(rows)):
        for chosen in itertools.product(activations, repeat=len(rows) * len(columns)):
            layers = [{} for _ in range(steps)]
            for (r, row), (c, column) in itertools.product(enumerate(rows), enumerate(columns)):
                for name, i in itertools.product(row, column):
                    layers[i][name] = LayerBits(weight[r], chosen[r * len(columns) + c])
            yield BitwidthPlan.by_step(layers)


@every_over
@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (3, {"saving": 55, "activations": [3, 6]}),
        (2, {"saving": 80, "weights": [3, 4], "activations": [3, 4]}),
        (2, {"saving": 45.5, "weights": [3, 4], "activations": [3, 8]}),
        (2, {"bytes": 60, "weights": [3, 4], "activations": [3, 4]}),
        (2, {"saving": 70, "bytes": 59, "weights": [2, 3, 4], "activations": [4, 6]}),
    ],
)
def test_the_optimum_is_that_of_an_enumeration(over, steps, changes):
    used = options(over=over, **changes)
    evidence = sensitivity(THREE, steps, used["weights"], used["activations"], seed=steps)
    plan = Budget(**used).plan(THREE, table(steps), evidence)
    feasible = [other for other in plans(THREE, steps, **used) if kept(other, THREE, steps, **used)]
    every = sum(1 for _ in plans(THREE, steps, **used))
    assert 1 < len(feasible) < every, "a budget that binds"
    best = min(damage(other, evidence, THREE, steps) for other in feasible)
    assert plan in feasible
    assert plan.notes["predicted_damage"] == pytest.approx(damage(plan, evidence, THREE, steps), rel=1e-12)
    assert plan.notes["predicted_damage"] == pytest.approx(best, rel=1e-12)
    assert plan.notes["bound"] <= best * (1 + 1e-9)
    assert 0 <= plan.notes["gap"] <= GAP


@every_over
@pytest.mark.parametrize("saving", [26.0, 33.3, 42])
@pytest.mark.parametrize("weights", [[4], [3, 4]])
def test_no_other_way_predicts_less_damage_within_the_same_budget(over, saving, weights):
    steps, network = 5, LINE
    evidence = sensitivity(network, steps, weights, [3, 4, 8], seed=7)
    used = options(saving=saving, weights=weights)
    best = Budget(**used).plan(network, table(steps), evidence)
    others = [policy(**used | {"over": over}).plan(network, table(steps), evidence) for policy in (Budget, Greedy)]
    others += [RandomBits(seed, **used | {"over": over}).plan(network, table(steps), None) for seed in range(3)]
    for plan in (best, *others):
        assert kept(plan, network, steps, saving=saving)
        assert plan.notes["bops"] == plan_cost(network, plan, steps).bops
        assert damage(best, evidence, network, steps) <= damage(plan, evidence, network, steps) * (1 + GAP)


@pytest.mark.parametrize("policy", [Budget, Greedy, RandomBits])
def test_what_may_not_differ_does_not(policy):
    evidence, seed = sensitivity(LINE, 5, [3, 4], [3, 4, 8]), {"seed": 3} if policy is RandomBits else {}
    spent = None if policy is RandomBits else evidence
    for over in OVERS:
        plan = policy(**seed, **options(saving=31, weights=[3, 4], over=over)).plan(LINE, table(5), spent)
        inner = ("a.conv", "a.emb", "b.conv")
        assert all(len(plan.weight_copies(name)) == 1 for name in inner)
        assert plan.varies == (over != "layers")
        alike = all(plan.at(name, i) == plan.at("a.conv", i) for name in inner for i in range(5))
        assert alike == (over == "steps")


def raised(plan, name, step, operand, offered):
    """The plan with the next bits at one place; None where there are none."""
    series = {"weight": dict(plan.weight), "activation": dict(plan.activation)}
    bits = series[operand][name]
    bits = bits * 5 if len(bits) == 1 and operand == "activation" else bits
    place = offered.index(bits[step])
    if place + 1 == len(offered):
        return None
    series[operand][name] = (*bits[:step], offered[place + 1], *bits[step + 1 :])
    return BitwidthPlan(**series)


@pytest.mark.parametrize("seed", range(4))
def test_random_plans_differ_by_seed_and_leave_no_room_for_another_raise(seed):
    used = options(saving=35, weights=[3, 4])
    plan, again, another = (RandomBits(s, **used).plan(LINE, table(5), None) for s in (seed, seed, seed + 1))
    assert plan == again != another
    for name in ("a.conv", "a.emb", "b.conv"):
        further = [raised(plan, name, i, "activation", [3, 4, 8]) for i in range(5)]
        further.append(raised(plan, name, 0, "weight", [3, 4]))
        assert not any(kept(more, LINE, 5, saving=35) for more in further if more is not None)


def test_greedy_leaves_no_room_for_another_raise():
    plan = Greedy(**options(saving=35)).plan(LINE, table(5), sensitivity(LINE, 5, [4], [3, 4, 8]))
    for name in ("a.conv", "a.emb", "b.conv"):
        further = [raised(plan, name, i, "activation", [3, 4, 8]) for i in range(5)]
        assert not any(kept(more, LINE, 5, saving=35) for more in further if more is not None)


@pytest.mark.parametrize("policy", [Budget, Greedy])
def test_a_budget_that_does_not_bind_buys_the_least_damage(policy):
    evidence = sensitivity(LINE, 3, [3, 4], [3, 4, 8])
    plan = policy(**options(saving=1, weights=[3, 4])).plan(LINE, table(3), evidence)
    assert {plan.at(name, i) for name in ("a.conv", "b.conv") for i in range(3)} == {LayerBits(4, 8)}


@pytest.mark.parametrize("policy", [Budget, Greedy])
def test_bits_that_harm_are_not_bought(policy):
    """Here the fewest bits do the least damage, as noise in a measurement may have it."""
    evidence = sensitivity(LINE, 3, [3, 4], [3, 4, 8])
    evidence.weight.neg_()
    evidence.activation.neg_()
    plan = policy(**options(saving=20, weights=[3, 4])).plan(LINE, table(3), evidence)
    assert {plan.at(name, i) for name in ("a.conv", "b.conv") for i in range(3)} == {LayerBits(3, 3)}
    assert plan.notes["predicted_damage"] < 0


@every_over
def test_a_budget_is_kept_to_the_last_bit_operation(over):
    """The saving of a plan itself is a budget that it keeps; the next number above it is one that it does not."""
    evidence = sensitivity(LINE, 4, [4], [3, 4, 8])
    plan = Budget(**options(saving=35, over=over)).plan(LINE, table(4), evidence)
    cost = plan_cost(LINE, plan, 4)
    again = Budget(**options(saving=cost.saving, over=over)).plan(LINE, table(4), evidence)
    assert plan_cost(LINE, again, 4).bops * cost.saving <= cost.float_bops
    less = Budget(**options(saving=cost.saving * (1 + 1e-12), over=over)).plan(LINE, table(4), evidence)
    assert plan_cost(LINE, less, 4).bops < cost.bops


def test_sums_that_a_solver_lets_through_are_not_kept(monkeypatch):
    """The first answer spends too much, as within a tolerance; the next is asked for with as much less."""
    asked = []

    def lenient(choices, values, limits):
        asked.append(limits)
        if len(asked) > 1:
            return solve(choices, values, limits)
        rich = choices.cheapest()
        rich.activation[1, 0] = 1
        asked.append(choices.cost(rich))
        return rich, 0.0

    solve = budget._solve
    monkeypatch.setattr(budget, "_solve", lenient)
    cheapest = plan_cost(LINE, Budget(**options(saving=1)).uniform(LINE, LayerBits(4, 3)), 2)
    saving = cheapest.float_bops / (cheapest.bops + 6_000)  # the raise adds 2,000 x 4 bit operations
    plan = Budget(**options(saving=saving)).plan(LINE, table(2), sensitivity(LINE, 2, [4], [3, 4, 8]))
    limits, spent, tightened = asked
    assert limits.bops - tightened.bops == spent[0] - limits.bops > 0
    assert kept(plan, LINE, 2, saving=saving)


@pytest.mark.parametrize("policy", [Budget, Greedy, RandomBits])
def test_a_budget_below_the_cheapest_plan_is_refused_with_its_number(policy):
    seed = {"seed": 0} if policy is RandomBits else {}
    cheapest = plan_cost(LINE, policy(**seed, **options(saving=9)).uniform(LINE, LayerBits(4, 3)), 3)
    with pytest.raises(ValueError, match=r"saving of at most [\d.]+, .* W4A3 .* attention's products") as refusal:
        policy(**seed, **options(saving=cheapest.saving * 1.0001)).check(LINE, table(3))
    most = float(re.search(r"at most ([\d.]+),", str(refusal.value))[1])
    assert most == pytest.approx(cheapest.saving, rel=1e-5)
    policy(**seed, **options(saving=most)).check(LINE, table(3))
    size = -(-cheapest.stored_bits // 8)
    with pytest.raises(ValueError, match=f"expected bytes of at least {size}, .* W4A3 .*, got {size - 1}; raise bytes"):
        policy(**seed, **options(bytes=size - 1)).check(LINE, table(3))
    policy(**seed, **options(bytes=size)).check(LINE, table(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saving": None}, "expected a budget, saving or bytes, got neither"),
        ({"saving": 0}, "expected a saving above 0, got 0"),
        ({"saving": float("inf")}, "expected a saving above 0, got inf"),
        ({"saving": float("nan")}, "expected a saving above 0, got nan"),
        ({"bytes": 0}, "expected bytes above 0, got 0"),
        ({"weights": []}, "offered to weights in ascending order"),
        ({"weights": [4, 3]}, "offered to weights in ascending order"),
        ({"activations": [4, 4]}, "offered to activations in ascending order"),
        ({"activations": [4, 9]}, "offered to activations of 2 to 8, which quantizers have, got 9"),
        ({"weights": [1, 4]}, "offered to weights of 2 to 8, which quantizers have, got 1"),
        ({"activations": [8, 32]}, "offered to activations of 2 to 8, which quantizers have, got 32"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Budget(**options(saving=30) | changes)


@pytest.mark.parametrize("policy", [Budget, Greedy])
def test_a_measurement_that_lacks_something_is_refused(policy):
    chosen = policy(**options(saving=20))
    for evidence, message in (
        (sensitivity(THREE, 3, [4], [3, 4, 8]), "site a.conv"),
        (sensitivity(LINE, 2, [4], [3, 4, 8]), "of 3 steps, got those of 2"),
        (sensitivity(LINE, 3, [3], [3, 4, 8]), "weight bits 4"),
        (sensitivity(LINE, 3, [4], [3, 4]), "activation bits 8"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*; measure again"):
            chosen.plan(LINE, table(3), evidence)
