"""Costs of a plan, counted by hand."""

import itertools
import math

import pytest
import torch

from ptq_diffusion.metric.cost import cost, usual_bits
from ptq_diffusion.model import Denoiser, Kind, Role, Site, UNetDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits

FLOAT = LayerBits(32, 32)


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
            Site("0", Kind.CONV2D, Role.FIRST, macs=100, weight_shape=(3, 2, 3, 3)),
            Site("1", Kind.LINEAR, Role.LAST, macs=30, weight_shape=(7, 5)),
        ]

    def attention_macs(self):
        return 11

    def predict(self, x_t, t):
        raise NotImplementedError

    def with_network(self, network):
        raise NotImplementedError


def plan(*layers):
    return BitwidthPlan.constant({str(i): LayerBits(*bits) for i, bits in enumerate(layers)})


@pytest.mark.parametrize("steps", [1, 20])
def test_bit_operations_by_hand(steps):
    found = cost(TwoLayers(), plan((4, 8), (8, 32)), steps)
    assert found.bops_per_image == steps * (100 * 4 * 8 + 30 * 8 * 32 + 11 * 32 * 32)


def test_bytes_by_hand():
    weights, biases = (3 * 2 * 9, 7 * 5), 3 + 7
    assert cost(TwoLayers(), plan((32, 8), (32, 8)), 1).weight_bytes == 4 * (sum(weights) + biases)
    assert cost(TwoLayers(), plan((8, 8), (8, 8)), 1).weight_bytes == sum(weights) + 4 * biases
    expected = (4 * weights[0] + 2 * weights[1] + 32 * biases) // 8
    assert cost(TwoLayers(), plan((4, 8), (2, 8)), 1).weight_bytes == expected


@pytest.fixture(scope="module")
def denoiser(tiny_model_folder):
    return UNetDenoiser.from_folder(str(tiny_model_folder()))


def everywhere(denoiser, bits):
    return BitwidthPlan.constant({site.name: bits for site in denoiser.sites()})


def test_a_network_by_hand(denoiser):
    """Attention's two products included: four layers of 16 positions and 16 channels."""
    sites = denoiser.sites()
    macs, weights = sum(site.macs for site in sites), sum(math.prod(site.weight_shape) for site in sites)
    others = sum(parameter.numel() for parameter in denoiser.network.parameters()) - weights
    found = cost(denoiser, everywhere(denoiser, LayerBits(4, 8)), 50)
    assert found.bops_per_image == 50 * (macs * 32 + 4 * 2 * 16 * 16 * 16 * 1024)
    assert found.weight_bytes == weights // 2 + 4 * others


def test_float_saves_nothing(denoiser):
    found = cost(denoiser, everywhere(denoiser, FLOAT), 3)
    macs = sum(site.macs for site in denoiser.sites()) + denoiser.attention_macs()
    assert found.bops_per_image == 3 * macs * 1024
    assert found.weight_bytes == sum(parameter.nbytes for parameter in denoiser.network.parameters())


def test_more_bits_cost_more(denoiser):
    costs = {
        bits: cost(denoiser, everywhere(denoiser, LayerBits(*bits)), 1)
        for bits in itertools.product((2, 4, 8, 32), (2, 4, 8, 32))
    }
    for a, b in itertools.permutations(costs, 2):
        if a[0] <= b[0] and a[1] <= b[1]:
            assert costs[a].bops_per_image < costs[b].bops_per_image
            assert (costs[a].weight_bytes < costs[b].weight_bytes) == (a[0] < b[0])


def test_the_usual_bits_are_those_of_most_work():
    assert usual_bits(TwoLayers(), plan((4, 8), (8, 8))) == (4, 8)
    assert usual_bits(TwoLayers(), plan((32, 32), (8, 8))) == (32, 32)


def test_the_usual_bits_add_up_layers_that_share_them(denoiser):
    largest = max(denoiser.sites(), key=lambda site: site.macs)
    layers = {site.name: LayerBits(4, 8) for site in denoiser.sites()} | {largest.name: LayerBits(8, 8)}
    assert largest.macs < sum(site.macs for site in denoiser.sites()) / 2
    assert usual_bits(denoiser, BitwidthPlan.constant(layers)) == (4, 8)
