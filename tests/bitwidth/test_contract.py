"""Every policy of conf/bitwidth gives every layer bits, for any network; patterns override in order."""

import pytest
from omegaconf import OmegaConf

from ptq_diffusion.bitwidth import ByRole
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.model import DiffusersDenoiser, Kind, Role, Site
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.numeric.grid import FLOAT_BITS

POLICIES = sorted(path.stem for path in (CONF / "bitwidth").glob("*.yaml"))
every_policy = pytest.mark.parametrize("name", POLICIES)


def site(name, role=Role.INNER):
    return Site(name, Kind.CONV2D, role, macs=1, weight_shape=(1, 1, 1, 1))


LINE = [site("in", Role.FIRST), site("a.conv"), site("a.emb"), site("b.conv"), site("out", Role.LAST)]
BITS = {role: {"weight": bits, "activation": bits + 1} for role, bits in (("inner", 4), ("first", 5), ("last", 6))}


def plan(patterns):
    entries = [{"name": name} | bits for name, bits in patterns.items()]
    return ByRole(**BITS, patterns=entries).plan(LINE)


def policy(name):
    return construct(OmegaConf.load(CONF / "bitwidth" / f"{name}.yaml"))


@every_policy
def test_every_site_has_bits(name, tiny_model_folder):
    for sites in (DiffusersDenoiser.from_folder(str(tiny_model_folder())).sites(), LINE, [site("alone")], []):
        found = policy(name).plan(sites)
        assert list(found.sites) == [site.name for site in sites]
        for site_ in sites:
            for bits in (found[site_.name].weight, found[site_.name].activation):
                assert bits in (*range(2, 9), FLOAT_BITS)


@every_policy
def test_a_plan_depends_on_the_sites_alone(name):
    made = policy(name)
    before = made.plan(LINE)
    made.plan([site("other")])
    assert made.plan(LINE) == before == policy(name).plan(LINE)


@pytest.mark.parametrize("name", [name for name in POLICIES if name.startswith("w")])
def test_a_name_says_the_bits_of_inner_layers(name):
    weight, activation = (int(bits) for bits in name.removeprefix("w").split("a"))
    found = policy(name).plan(LINE)
    assert found["a.conv"] == found["b.conv"] == LayerBits(weight, activation)
    assert found["in"] == found["out"] == LayerBits(8, 8)


def test_float_leaves_everything():
    found = policy("float").plan(LINE)
    assert {found[name] for name in found.sites} == {LayerBits(FLOAT_BITS, FLOAT_BITS)}


def test_bits_follow_the_role():
    found = plan({})
    assert found["in"] == LayerBits(5, 6)
    assert found["out"] == LayerBits(6, 7)
    assert found["a.conv"] == found["a.emb"] == found["b.conv"] == LayerBits(4, 5)


def test_a_pattern_overrides_any_role_and_touches_nothing_else():
    found = plan({"*.conv": {"weight": 2, "activation": 32}})
    assert found["a.conv"] == found["b.conv"] == LayerBits(2, 32)
    assert found["a.emb"] == LayerBits(4, 5)
    assert plan({"in": {"weight": 8, "activation": 8}})["in"] == LayerBits(8, 8)


def test_the_last_match_wins():
    wide, narrow = {"weight": 7, "activation": 7}, {"weight": 3, "activation": 3}
    last_narrow, last_wide = plan({"a.*": wide, "*.conv": narrow}), plan({"*.conv": narrow, "a.*": wide})
    assert last_narrow["a.conv"] == LayerBits(3, 3) and last_wide["a.conv"] == LayerBits(7, 7)
    for found in (last_narrow, last_wide):
        assert found["a.emb"] == LayerBits(7, 7) and found["b.conv"] == LayerBits(3, 3)


@pytest.mark.parametrize("pattern", ["c.*", "A.conv", "conv", ""])
def test_a_pattern_that_matches_nothing_is_an_error(pattern):
    with pytest.raises(ValueError, match="to match a layer, it matches none; layers are in, a.conv"):
        plan({"*": {"weight": 8, "activation": 8}, pattern: {"weight": 8, "activation": 8}})


@pytest.mark.parametrize("part", ["inner", "first", "last", "patterns"])
def test_bits_that_make_no_sense_are_refused_at_construction(part):
    bad = {"weight": 9, "activation": 8}
    with pytest.raises(ValueError, match="expected weight bits of 2 to 8, or 32 for float, got 9"):
        ByRole(**BITS | {"patterns": []} | {part: [{"name": "*"} | bad] if part == "patterns" else bad})
