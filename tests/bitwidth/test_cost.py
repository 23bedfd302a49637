"""Costs of a plan, counted by hand."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_diffusion.bitwidth.cost import CostOutsidePlan, plan_cost
from ptq_diffusion.bitwidth.cost import mean_bits as mean_bits_of
from ptq_diffusion.metric.cost import cost, mean_bits, usual_bits, variant_cost
from ptq_diffusion.model import Denoiser, DiffusersDenoiser, Kind, Role, Site
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import product_sites

FLOAT = LayerBits(32, 32)
EIGHT_SIX = (LayerBits(8, 6), LayerBits(6, 8))


class TwoLayers(Denoiser):
    """Shapes and work that can be counted on fingers; it computes nothing."""

    shape = (1, 4, 4)
    scheduler_config = {}

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Linear(5, 7))

    @property
    def network(self):
        return self.layers

    def sites(self):
        return [
            Site("0", Kind.CONV2D, Role.FIRST, macs=100, weight_shape=(3, 2, 3, 3), input_size=32),
            Site("1", Kind.LINEAR, Role.LAST, macs=30, weight_shape=(7, 5)),
        ]

    def attention_macs(self):
        return 11

    def predict(self, x_t, step, condition=None):
        raise NotImplementedError

    def with_network(self, network):
        raise NotImplementedError


def plan(*layers):
    return BitwidthPlan.constant({str(i): LayerBits(*bits) for i, bits in enumerate(layers)})


@pytest.mark.parametrize("steps", [1, 20])
def test_bit_operations_by_hand(steps):
    found = cost(TwoLayers().architecture(), plan((4, 8), (8, 32)), steps)
    assert found.bops_per_image == steps * (100 * 4 * 8 + 30 * 8 * 32 + 11 * 32 * 32)


def test_an_equalised_input_takes_a_multiplication_for_each_number_where_it_is_quantized():
    by_step = BitwidthPlan.by_step([{"0": LayerBits(4, bits), "1": LayerBits(8, 8)} for bits in (8, 8, 32)])
    architecture = TwoLayers().architecture()
    plain, equalised = (plan_cost(architecture, by_step, 3, CostOutsidePlan(layers)) for layers in ([], ["0"]))
    assert equalised.bops - plain.bops == 2 * 32 * 32 * 32
    row = variant_cost(architecture, by_step, 3, 0, outside_plan=CostOutsidePlan(["0"]))
    assert row.bops_per_image == equalised.bops and equalised.attention_bops == plain.attention_bops


def test_a_part_of_low_rank_takes_two_products_in_16_bits():
    layer = Site("0", Kind.LINEAR, Role.INNER, 3 * 7 * 5, (7, 5))
    architecture, rank = Architecture((layer,), 0, 35), 2
    by_step = BitwidthPlan.by_step([{"0": LayerBits(*bits)} for bits in ((4, 8), (4, 6), (32, 8))])
    plain, outside_plan = (
        plan_cost(architecture, by_step, 3, CostOutsidePlan((), ranks)) for ranks in ({}, {"0": rank})
    )
    first, second = 3 * rank * 5 * 16 * (8 + 6), 2 * 3 * rank * 7 * 16 * 16
    assert outside_plan.bops - plain.bops == first + second
    assert outside_plan.stored_bits - plain.stored_bits == rank * (7 + 5) * 16


def test_tables_of_embeddings_are_stored_at_their_bits():
    architecture = replace(TwoLayers().architecture(), parameters=1000)
    plain, outside_plan = (
        plan_cost(architecture, plan((4, 8), (8, 8)), 1, CostOutsidePlan(embeddings=200, embedding_bits=bits))
        for bits in (32, 6)
    )
    assert plain.stored_bits - outside_plan.stored_bits == 200 * (32 - 6)
    assert plain == plan_cost(architecture, plan((4, 8), (8, 8)), 1) and plain.bops == outside_plan.bops


def test_bytes_by_hand():
    weights, biases = (3 * 2 * 9, 7 * 5), 3 + 7
    assert cost(TwoLayers().architecture(), plan((32, 8), (32, 8)), 1).weight_bytes == 4 * (sum(weights) + biases)
    assert cost(TwoLayers().architecture(), plan((8, 8), (8, 8)), 1).weight_bytes == sum(weights) + 4 * biases
    expected = (4 * weights[0] + 2 * weights[1] + 32 * biases) // 8
    assert cost(TwoLayers().architecture(), plan((4, 8), (2, 8)), 1).weight_bytes == expected


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return DiffusersDenoiser.from_folder(str(tiny_model_folder()))


def everywhere(denoiser, bits):
    return BitwidthPlan.constant({site.name: bits for site in denoiser.sites()})


def test_a_network_by_hand(denoiser):
    """Attention's two products included: four layers of 16 positions and 16 channels."""
    sites = [site for site in denoiser.sites() if site.weighted]
    macs, weights = sum(site.macs for site in sites), sum(math.prod(site.weight_shape) for site in sites)
    others = sum(parameter.numel() for parameter in denoiser.network.parameters()) - weights
    layers = dict.fromkeys((site.name for site in sites), LayerBits(4, 8))
    for qk, pv, bits in ((FLOAT, FLOAT, 2 * 1024), (LayerBits(8, 8), FLOAT, 64 + 1024), (*EIGHT_SIX, 2 * 48)):
        products = {s.name: qk if s.name.endswith(".qk") else pv for s in denoiser.sites() if not s.weighted}
        found = cost(denoiser.architecture(), BitwidthPlan.constant(layers | products), 50)
        assert found.attention_bops == 50 * 4 * 16 * 16 * 16 * bits
        assert found.bops_per_image == 50 * macs * 32 + found.attention_bops
        assert found.weight_bytes == weights // 2 + 4 * others, "products store nothing"
        assert mean_bits(denoiser.architecture(), BitwidthPlan.constant(layers | products)) == (4, 8)


def test_products_by_step_by_hand():
    sites = (Site("0", Kind.LINEAR, Role.INNER, 100, (10, 10)), *product_sites("a", 7))
    plan_ = BitwidthPlan({"0": (4,), "a.qk": (8, 32), "a.pv": (6,)}, {"0": (8,), "a.qk": (8, 4), "a.pv": (4, 8)})
    found = plan_cost(Architecture(sites, 3, 100), plan_, 2)
    assert found.attention_bops == 7 * (8 * 8 + 32 * 4 + 6 * 4 + 6 * 8) + 2 * 3 * 1024
    assert found.bops == 2 * 100 * 4 * 8 + found.attention_bops
    assert found.float_bops == 2 * (100 + 7 + 7 + 3) * 1024 and found.stored_bits == 100 * 4


def test_float_saves_nothing(denoiser):
    found = cost(denoiser.architecture(), everywhere(denoiser, FLOAT), 3)
    macs = sum(site.macs for site in denoiser.sites()) + denoiser.attention_macs()
    assert found.bops_per_image == 3 * macs * 1024
    assert found.weight_bytes == sum(parameter.nbytes for parameter in denoiser.network.parameters())


def test_more_bits_cost_more(denoiser):
    costs = {
        bits: cost(denoiser.architecture(), everywhere(denoiser, LayerBits(*bits)), 1)
        for bits in itertools.product((2, 4, 8, 32), (2, 4, 8, 32))
    }
    for a, b in itertools.permutations(costs, 2):
        if a[0] <= b[0] and a[1] <= b[1]:
            assert costs[a].bops_per_image < costs[b].bops_per_image
            assert (costs[a].weight_bytes < costs[b].weight_bytes) == (a[0] < b[0])


def test_the_usual_bits_are_those_of_most_work():
    assert usual_bits(TwoLayers().architecture(), plan((4, 8), (8, 8))) == (4, 8)
    assert usual_bits(TwoLayers().architecture(), plan((32, 32), (8, 8))) == (32, 32)


def test_the_usual_bits_add_up_layers_that_share_them(denoiser):
    largest = max(denoiser.sites(), key=lambda site: site.macs)
    layers = {site.name: LayerBits(4, 8) for site in denoiser.sites()} | {largest.name: LayerBits(8, 8)}
    assert largest.macs < sum(site.macs for site in denoiser.sites()) / 2
    assert usual_bits(denoiser.architecture(), BitwidthPlan.constant(layers)) == (4, 8)


VARYING = BitwidthPlan({"0": (4, 8, 4), "1": (2,)}, {"0": (3, 8, 8), "1": (8,)})


def plan_of_most_steps():
    return BitwidthPlan({"0": (4,), "1": (8,)}, {"0": (3, 8, 8), "1": (8,)})


def test_a_varying_plan_by_hand():
    found = cost(TwoLayers().architecture(), VARYING, 3)
    assert found.bops_per_image == 100 * (4 * 3 + 8 * 8 + 4 * 8) + 3 * (30 * 2 * 8 + 11 * 32 * 32)
    assert found.attention_bops == 3 * 11 * 1024
    assert found.attention_share == 3 * 11 * 1024 / found.bops_per_image
    assert found.weight_bytes == (54 * (4 + 8) + 35 * 2 + 32 * 10) // 8, "a copy for every bitwidth of a weight"
    assert mean_bits(TwoLayers().architecture(), VARYING) == ((16 * 100 + 6 * 30) / 390, (19 * 100 + 24 * 30) / 390)
    assert usual_bits(TwoLayers().architecture(), plan_of_most_steps()) == (4, 8)
    with pytest.raises(ValueError, match="expected a bitwidth plan of 4 steps, got one of 3"):
        cost(TwoLayers().architecture(), VARYING, 4)


BITS = st.sampled_from([2, 3, 4, 8, 32])


@settings(deadline=None)
@given(st.data())
def test_costs_equal_an_enumeration(data):
    """Every site, every step, every bit on its own."""
    macs = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=3))
    layers = tuple(Site(str(i), Kind.LINEAR, Role.INNER, work, (work, 2)) for i, work in enumerate(macs))
    sites = (*layers, *product_sites("a", data.draw(st.integers(1, 50))))
    architecture = Architecture(sites, data.draw(st.integers(0, 9)), 2 * sum(macs) + data.draw(st.integers(0, 9)))
    steps = data.draw(st.integers(1, 3))
    table = [{site.name: LayerBits(data.draw(BITS), data.draw(BITS)) for site in sites} for _ in range(steps)]
    found, plan_ = plan_cost(architecture, BitwidthPlan.by_step(table), steps), BitwidthPlan.by_step(table)
    pairs = [(site, row[site.name]) for row in table for site in layers]
    products = [(site, row[site.name]) for row in table for site in sites if site not in layers]
    attention = sum(site.macs * bits.weight * bits.activation for site, bits in products)
    attention += 1024 * steps * architecture.attention_macs
    assert found.bops == sum(site.macs * bits.weight * bits.activation for site, bits in pairs) + attention
    assert found.attention_bops == attention
    full = plan_cost(architecture, BitwidthPlan.constant({site.name: FLOAT for site in sites}), steps)
    assert found.float_bops == full.bops and full.saving == 1 and found.saving >= 1
    copies = {(site.name, row[site.name].weight) for row in table for site in layers}
    others = architecture.parameters - 2 * sum(macs)
    assert found.stored_bits == sum(2 * macs[int(name)] * bits for name, bits in copies) + 32 * others
    weight, activation = mean_bits_of(architecture, plan_, steps)
    assert weight == pytest.approx(sum(site.macs * bits.weight for site, bits in pairs) / (steps * sum(macs)))
    assert activation == pytest.approx(sum(site.macs * bits.activation for site, bits in pairs) / (steps * sum(macs)))


def test_a_mean_of_no_work_is_refused():
    with pytest.raises(ValueError, match="a mean of its bits has no meaning"):
        mean_bits_of(Architecture((), 0, 0), BitwidthPlan.constant({}), 1)
