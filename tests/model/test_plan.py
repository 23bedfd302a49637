"""A plan says the bits of a site at a step, refuses another network and another table, and comes back from JSON."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import Kind, Role, Site

NOTES = {"predicted_damage": 0.1, "bops": 3e15}
CONSTANT = BitwidthPlan.constant({"a": LayerBits(4, 8), "b": LayerBits(8, 32)})
VARYING = BitwidthPlan({"a": (4,), "b": (8, 4, 8)}, {"a": (3, 4, 8), "b": (8,)}, NOTES)


def sites(*names):
    return [Site(name, Kind.LINEAR, Role.INNER, 1, (1, 1)) for name in names]


bits = st.sampled_from([*range(2, 9), 32])


@st.composite
def tables(draw):
    """Bits of up to three sites at every step of up to four."""
    names, steps = draw(st.lists(st.sampled_from("abc"), unique=True)), draw(st.integers(1, 4))
    return [{name: LayerBits(draw(bits), draw(bits)) for name in names} for _ in range(steps)]


@settings(deadline=None)
@given(tables())
def test_a_plan_is_its_table(table):
    plan = BitwidthPlan.by_step(table)
    for i, layers in enumerate(table):
        assert {name: plan.at(name, i) for name in plan.sites} == layers
    plan.require(sites(*table[0]), len(table))
    assert plan.varies == any(layers != table[0] for layers in table)
    assert plan.steps == (len(table) if plan.varies else 1)
    for name in plan.sites:
        assert plan.weight_copies(name) == tuple(sorted({layers[name].weight for layers in table}))
        counts = plan.counts(name, (1,) * len(table))
        assert all(sum(layers[name] == pair for layers in table) == count for pair, count in counts.items())
        assert sum(counts.values()) == len(table)


@settings(deadline=None)
@given(tables(), tables())
def test_json_and_fingerprint_hold_all_bits(table, other):
    plan, another = BitwidthPlan.by_step(table, NOTES), BitwidthPlan.by_step(other)
    back = BitwidthPlan.from_json(plan.to_json())
    assert back == plan and back.notes == NOTES and back.sites == plan.sites
    assert len(plan.fingerprint()) == 16
    assert (plan.fingerprint() == another.fingerprint()) == (plan == another)


def test_a_constant_plan_fits_any_table_and_is_read_without_a_step():
    assert CONSTANT.steps == 1 and not CONSTANT.varies
    assert CONSTANT["a"] == CONSTANT.at("a", 99) == LayerBits(4, 8)
    assert CONSTANT.counts("b", (1,) * 7) == {LayerBits(8, 32): 7}
    for steps in (1, 50):
        CONSTANT.require(sites("a", "b"), steps)


def test_a_varying_plan_by_hand():
    assert [VARYING.at("a", i) for i in range(3)] == [LayerBits(4, 3), LayerBits(4, 4), LayerBits(4, 8)]
    assert VARYING.counts("b", (1,) * 3) == {LayerBits(8, 8): 2, LayerBits(4, 8): 1}
    assert VARYING.weight_copies("b") == (4, 8) and VARYING.weight_copies("a") == (4,)
    with pytest.raises(ValueError, match="same bits at all steps, this one has 3"):
        VARYING["a"]


@pytest.mark.parametrize("plan", [CONSTANT, VARYING])
def test_another_network_is_refused(plan):
    for call in (plan.__getitem__, plan.weight_copies, lambda name: plan.at(name, 0)):
        if plan is VARYING and call == plan.__getitem__:
            continue
        with pytest.raises(KeyError, match="no site 'c'; it was made for another network"):
            call("c")
    with pytest.raises(ValueError, match="lacks c .* it was made for another network"):
        plan.require(sites("a", "b", "c"), 3)
    with pytest.raises(ValueError, match="has b .* it was made for another network"):
        plan.require(sites("a"), 3)


def test_another_table_is_refused():
    for i in (-1, 3):
        with pytest.raises(ValueError, match=f"none of number {i}; it was made for another table"):
            VARYING.at("a", i)
    for call in (lambda: VARYING.counts("a", (1,) * 4), lambda: VARYING.require(sites("a", "b"), 4)):
        with pytest.raises(ValueError, match="expected a bitwidth plan of 4 steps, got one of 3; .* another table"):
            call()


@pytest.mark.parametrize(
    ("weight", "activation", "message"),
    [
        ({"a": (4,)}, {}, "only one of a"),
        ({"a": ()}, {"a": (4,)}, r"got \[0, 1\]"),
        ({"a": (4, 4)}, {"a": (4, 4, 4)}, r"got \[2, 3\]"),
        ({"a": (4, 9)}, {"a": (4,)}, "weight bits .* got 9"),
        ({"a": (4,)}, {"a": (4, 16)}, "activation bits .* got 16"),
    ],
)
def test_bits_that_make_no_plan_are_refused(weight, activation, message):
    with pytest.raises(ValueError, match=message):
        BitwidthPlan(weight, activation)


def test_steps_of_other_sites_are_refused():
    for table in ([], [{"a": LayerBits(4, 4)}, {"b": LayerBits(4, 4)}]):
        with pytest.raises(ValueError, match="same sites at one step or more"):
            BitwidthPlan.by_step(table)


def test_notes_are_finite():
    with pytest.raises(ValueError, match="got gap = nan"):
        BitwidthPlan({}, {}, {"gap": float("nan")})


GOOD = json.loads(VARYING.to_json())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "{}",
        json.dumps(GOOD | {"version": 0}),
        json.dumps({key: value for key, value in GOOD.items() if key != "weight"}),
        json.dumps(GOOD | {"weight": {"a": 4, "b": 8}}),
        json.dumps(GOOD | {"weight": {"a": [4.5], "b": [8]}}),
        json.dumps(GOOD | {"weight": {"a": ["4"], "b": [8]}}),
        json.dumps(GOOD | {"notes": {"gap": "small"}}),
        json.dumps(GOOD | {"activation": None}),
    ],
)
def test_other_content_is_refused_by_one_message(text):
    with pytest.raises(ValueError, match="expected a bitwidth plan of version 1, got other content .* make the plan"):
        BitwidthPlan.from_json(text)
