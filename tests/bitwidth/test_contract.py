"""Every policy of conf/bitwidth gives every layer bits, for any network and table; roles and patterns hold in all."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from ptq_diffusion.bitwidth import ByRole, Evidence
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.main import CONF
from ptq_diffusion.model import DiffusersDenoiser, Role
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.numeric.grid import FLOAT_BITS
from tests.bitwidth.networks import LINE, architecture, sensitivity, signal, site, table

POLICIES = sorted(path.stem for path in (CONF / "bitwidth").glob("*.yaml"))
every_policy = pytest.mark.parametrize("name", POLICIES)
ROLES = {"inner": 4, "first": 5, "last": 6, "attention": 7}
BITS = {role: {"weight": bits, "activation": bits + 1} for role, bits in ROLES.items()}
STEPS = 7
NETWORKS = {
    "line": LINE,
    "alone": architecture(site("alone")),
    "first": architecture(site("in", Role.FIRST)),
    "none": architecture(),
}


@pytest.fixture(scope="module")
def unet(tiny_model_folder):
    model = DiffusersDenoiser.from_folder(str(tiny_model_folder()))
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return Architecture(tuple(model.sites()), model.attention_macs(), parameters)


def preset(name):
    """A preset over those that it builds on."""
    options = OmegaConf.load(CONF / "bitwidth" / f"{name}.yaml")
    bases = [preset(base) for base in options.pop("defaults", []) if base != "_self_"]
    return OmegaConf.merge(*bases, options)


def policy(name, **options):
    return construct(OmegaConf.merge(preset(name), options))


def measured(chosen, network, steps):
    """The evidence that a policy reads."""
    if chosen.reads is Evidence.STEP_SNR:
        return signal(chosen.offered, steps)
    if chosen.reads is Evidence.SENSITIVITY:
        weights, activations = (
            sorted({getattr(bits, of) for bits in chosen.offered}) for of in ("weight", "activation")
        )
        return sensitivity(network, steps, weights, activations)
    return None


def planned(chosen, network=LINE, steps=STEPS):
    return chosen.plan(network, table(steps), measured(chosen, network, steps))


def by_role(patterns):
    entries = [{"name": name} | bits for name, bits in patterns.items()]
    return ByRole(**BITS, patterns=entries).plan(LINE, [], None)


@every_policy
def test_every_layer_of_a_unet_has_bits(name, unet):
    # Its first layer and its attention are too much of its work for a saving of 30.
    chosen = policy(name, **({"saving": 3} if isinstance(policy(name), UnderBudget) else {}))
    planned(chosen, unet).require(unet.sites, STEPS)


@every_policy
@pytest.mark.parametrize("network", ["line", "alone", "none"])
@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_every_site_has_bits_at_every_step(name, network, steps):
    chosen, network = policy(name), NETWORKS[network]
    plan = planned(chosen, network, steps)
    assert plan.sites == tuple(site.name for site in network.sites)
    plan.require(network.sites, steps)
    for site_ in network.sites:
        for i in range(steps):
            bits = plan.at(site_.name, i)
            assert {bits.weight, bits.activation} <= {*range(2, 9), FLOAT_BITS}
            assert site_.role is not Role.INNER or bits in chosen.offered


@every_policy
def test_the_first_and_the_last_layer_and_patterns_keep_their_bits(name):
    outer, named = {"weight": 5, "activation": 6}, {"name": "a.emb", "weight": 32, "activation": 7}
    plan = planned(policy(name, first=outer, last=outer, patterns=[named]))
    for i in range(STEPS):
        assert plan.at("in", i) == plan.at("out", i) == LayerBits(5, 6)
        assert plan.at("a.emb", i) == LayerBits(32, 7)


@every_policy
def test_attention_is_float_unless_it_is_told_bits_of_its_own(name, unet):
    names = [site.name for site in unet.sites if not site.weighted]
    spender = {"saving": 3} if isinstance(policy(name), UnderBudget) else {}
    told = policy(name, attention={"weight": 6, "activation": 8}, **spender)
    pattern = {"name": "mid_block.*.qk", "weight": 7, "activation": 5}
    named = policy(name, patterns=[pattern], **spender)
    assert not {site.name for site in told.roles.free(unet.sites)} & set(names)
    for made, qk, others in (
        (policy(name, **spender), LayerBits(32, 32), LayerBits(32, 32)),
        (told, LayerBits(6, 8), LayerBits(6, 8)),
        (named, LayerBits(7, 5), LayerBits(32, 32)),
    ):
        plan = planned(made, unet)
        for i in range(STEPS):
            for each in names:
                assert plan.at(each, i) == (qk if each == "mid_block.attentions.0.qk" else others)


@every_policy
def test_bits_of_attention_whose_products_are_no_sites_are_refused(name, unet):
    opaque = replace(unet, attention_macs=10**9)
    told = policy(name, attention={"weight": 8, "activation": 8})
    with pytest.raises(ValueError, match=r"1 GMACs a forward are products.*W8A8; set bitwidth.attention.weight=32"):
        told.roles.require_products(opaque)
    policy(name).roles.require_products(opaque)


@every_policy
def test_a_network_of_outer_layers_alone(name):
    network = NETWORKS["first"]
    try:
        plan = planned(policy(name), network)
    except ValueError as error:
        assert isinstance(policy(name), UnderBudget)
        assert "expected a saving of at most 16.0," in str(error)
    else:
        assert not plan.varies and plan["in"] == policy(name).roles.first


@every_policy
def test_equal_arguments_give_equal_plans_whatever_was_planned_before(name):
    made = policy(name)
    before = planned(made)
    planned(made, NETWORKS["alone"], 3)
    assert planned(made) == before == planned(policy(name))


@every_policy
def test_a_plan_comes_back_from_json(name):
    plan = planned(policy(name))
    back = BitwidthPlan.from_json(plan.to_json())
    assert back == plan and back.notes == plan.notes and back.fingerprint() == plan.fingerprint()


@every_policy
def test_what_is_offered_can_be_measured(name):
    """The plans in which a measurement of each offer is made: these bits in all inner layers, at every step."""
    chosen = policy(name)
    assert chosen.offered
    for bits in chosen.offered:
        plan = chosen.uniform(LINE, bits)
        assert not plan.varies and plan["a.conv"] == plan["b.conv"] == bits
        assert plan["in"] == chosen.roles.first and plan["out"] == chosen.roles.last


@every_policy
@pytest.mark.parametrize("pattern", ["c.*", "A.conv", "conv", ""])
def test_a_pattern_that_matches_nothing_is_an_early_error(name, pattern):
    eight = {"weight": 8, "activation": 8}
    made = policy(name, patterns=[{"name": "a.*"} | eight, {"name": pattern} | eight])
    with pytest.raises(ValueError, match="to match a layer, it matches none; layers are in, a.conv"):
        made.check(LINE, table(STEPS))


@pytest.mark.parametrize("name", [name for name in POLICIES if not isinstance(policy(name), ByRole)])
def test_bits_by_step_need_steps(name):
    with pytest.raises(ValueError, match="expected the steps of a sampler's table"):
        policy(name).check(LINE, [])


@pytest.mark.parametrize("name", [name for name in POLICIES if name.startswith("w")])
def test_a_name_says_the_bits_of_inner_layers(name):
    weight, activation = (int(bits) for bits in name.removeprefix("w").split("a"))
    found = planned(policy(name))
    assert found["a.conv"] == found["b.conv"] == LayerBits(weight, activation)
    assert found["in"] == found["out"] == LayerBits(8, 8)


def test_float_leaves_everything():
    found = planned(policy("float"))
    assert {found[name] for name in found.sites} == {LayerBits(FLOAT_BITS, FLOAT_BITS)}


def test_bits_follow_the_role():
    found = by_role({})
    assert found["in"] == LayerBits(5, 6)
    assert found["out"] == LayerBits(6, 7)
    assert found["a.conv"] == found["a.emb"] == found["b.conv"] == LayerBits(4, 5)


def test_a_pattern_overrides_any_role_and_touches_nothing_else():
    found = by_role({"*.conv": {"weight": 2, "activation": 32}})
    assert found["a.conv"] == found["b.conv"] == LayerBits(2, 32)
    assert found["a.emb"] == LayerBits(4, 5)
    assert by_role({"in": {"weight": 8, "activation": 8}})["in"] == LayerBits(8, 8)


def test_the_last_match_wins():
    wide, narrow = {"weight": 7, "activation": 7}, {"weight": 3, "activation": 3}
    last_narrow, last_wide = by_role({"a.*": wide, "*.conv": narrow}), by_role({"*.conv": narrow, "a.*": wide})
    assert last_narrow["a.conv"] == LayerBits(3, 3) and last_wide["a.conv"] == LayerBits(7, 7)
    for found in (last_narrow, last_wide):
        assert found["a.emb"] == LayerBits(7, 7) and found["b.conv"] == LayerBits(3, 3)


@pytest.mark.parametrize("part", [*ROLES, "patterns"])
def test_bits_that_make_no_sense_are_refused_at_construction(part):
    bad = {"weight": 9, "activation": 8}
    with pytest.raises(ValueError, match="expected weight bits of 2 to 8, or 32 for float, got 9"):
        ByRole(**BITS | {"patterns": []} | {part: [{"name": "*"} | bad] if part == "patterns" else bad})
