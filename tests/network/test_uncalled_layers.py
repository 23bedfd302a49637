"""Layers of a user's network that no forward calls: they stay float, and the network is quantized without them."""

import logging

import pytest
import torch
from torch import nn

from ptq_diffusion.model.own import ModuleDenoiser
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import InputObservations, quantize
from tests.network.networks import ACTIVATION, WEIGHT, constant, observed, outputs


class Attentive(nn.Module):
    """Two convolutions and an attention between them, whose output projection torch reads without a call."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        h = self.enter(x)
        tokens = h.flatten(2).mT
        return self.leave(h + self.attention(tokens, tokens, tokens)[0].mT.reshape(h.shape))


class OwnDenoiser(ModuleDenoiser):
    def __init__(self, first):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(Attentive(), (3, 8, 8), {}, first, "leave")

    def call(self, x, t, condition):
        return self.network(x)


def test_they_are_no_sites_and_stop_nothing(tmp_path, caplog):
    denoiser = OwnDenoiser("enter")
    with caplog.at_level(logging.INFO):
        assert [site.name for site in denoiser.sites()] == ["enter", "leave"]
    assert "no forward calls it: attention.out_proj, head" in caplog.text
    observed(denoiser).save(tmp_path / "inputs")
    observations = InputObservations(denoiser.sites(), ACTIVATION)
    observations.restore(tmp_path / "inputs")
    quantized = quantize(denoiser, constant(denoiser, LayerBits(4, 4)), observations, WEIGHT)
    assert not torch.equal(outputs(quantized), outputs(denoiser))


def test_the_first_and_the_last_layer_are_called():
    with pytest.raises(ValueError, match="layers that `call` reaches, got 'head'.*name another"):
        OwnDenoiser("head").sites()
