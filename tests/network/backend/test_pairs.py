"""Integer layers whose rows of guidance are quantized by their difference equal simulated ones."""

import pytest
import torch

from ptq_diffusion.network import InputGrid, Integer, Rescaling
from ptq_diffusion.network.backend.devices import PRODUCTS
from tests.network.backend.layers import EXACT, KINDS, LAYERS, PROVIDERS, difference, layer_of


def paired_layer(name, input_bits, kinds, shifted):
    """A simulated layer with differences at the first of two steps, and pairs of rows that hardly differ."""
    simulated, x = layer_of(name, 4, input_bits, kinds)
    random = torch.Generator().manual_seed(0)
    pairs = torch.cat([x + 0.1 * torch.randn(x.shape, generator=random), x])
    settings, channels = simulated.settings, simulated.weights[0].shape[0]
    shift = torch.randn(x.shape[simulated.channels], generator=random).view(-1, *[1] * (2 if x.ndim == 4 else 0))
    numbers = settings.scale[:1], settings.zero_point[:1], shift if shifted else None
    gain, offset = torch.rand(2, channels, generator=random)
    rows = [Rescaling(gain, offset, InputGrid(*numbers, scale)) for scale in (torch.tensor([0.02]), None)]
    simulated.settings = settings.rescaled(rows)
    simulated.current.paired = True
    return simulated, pairs


@pytest.mark.parametrize("products", PROVIDERS, ids=lambda products: type(products).__name__)
@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_pairs_equal_their_simulation(products, kinds, monkeypatch):
    """In layers of every kind, with and without a shift, at a step with differences and at one without."""
    monkeypatch.setitem(PRODUCTS, "cpu", products)
    for name in LAYERS:
        for input_bits, shifted in ((4, False), (8, False), (4, True)):
            simulated, pairs = paired_layer(name, input_bits, kinds, shifted)
            if shifted and simulated.bordered:
                continue
            assert Integer().obstacle(simulated) is None
            integer, outputs = Integer().layer(simulated), []
            for simulated.current.i in (0, 1):
                outputs.append(integer(pairs))
                assert difference(outputs[-1], simulated(pairs)) < EXACT, (name, input_bits, shifted)
            assert not torch.equal(*outputs), "the first step has differences"


def test_single_rows_are_refused_and_what_a_layer_meets_is_shown_in_pairs():
    simulated, pairs = paired_layer("linear", 4, (True, True, False), True)
    integer, seen = Integer().layer(simulated), []
    with integer.watch_input(seen.append):
        integer(pairs)
    assert torch.equal(seen[0], simulated.settings(pairs, 0, paired=True))
    for simulated.current.paired, rows in ((False, pairs), (True, pairs[:3])):
        with pytest.raises(ValueError, match="expected rows of pairs of guidance, .* got single rows"):
            integer(rows)
