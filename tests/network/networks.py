"""Quantized copies of a tiny network, observed on a few states."""

import torch

from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network import InputObservations, quantize
from ptq_diffusion.quantizer import AffineQuantizer, LpSearch, PerChannel, PerTensor
from tests.steps import at

TIMES = (20.0, 500.0, 900.0)


def maker(symmetric, granularity):
    """From a bitwidth to a fresh quantizer."""
    return lambda bits: AffineQuantizer(bits, symmetric, granularity, LpSearch(2, 16), 1024)


WEIGHT, ACTIVATION = maker(True, PerChannel()), maker(False, PerTensor())
FLOAT = LayerBits(32, 32)


def states(denoiser, count=3):
    return torch.randn(count, *denoiser.shape, generator=torch.Generator().manual_seed(0))


def observed(denoiser, activation=ACTIVATION, condition=None):
    """What the layers are given at all times."""
    observations = InputObservations(denoiser.sites(), activation)
    with observations.observing(denoiser.network):
        for t in TIMES:
            denoiser.predict(states(denoiser), at(t), condition)
    return observations


def constant(denoiser, bits, **exceptions):
    """The plan with the same bits at every layer and step, but for some layers; attention's products are float."""
    return by_step(denoiser, [bits], **exceptions)


def by_step(denoiser, table, **exceptions):
    """The plan with the bits table[i] of every layer at step i, but for some layers."""
    sites = denoiser.sites()

    def of(site, bits):
        return exceptions.get(site.name, bits if site.weighted else FLOAT)

    return BitwidthPlan.by_step([{site.name: of(site, bits) for site in sites} for bits in table])


def weighted(denoiser):
    """The sites that are layers."""
    return [site for site in denoiser.sites() if site.weighted]


def quantized(denoiser, bits, weight=WEIGHT, activation=ACTIVATION, condition=None, **exceptions):
    """The quantized copy of a constant plan."""
    observations = observed(denoiser, activation, condition)
    return quantize(denoiser, constant(denoiser, bits, **exceptions), observations, weight)


def outputs(denoiser, i=0):
    """The outputs at all times, each as that of step i."""
    return torch.stack([denoiser.predict(states(denoiser), at(t, i)).m for t in TIMES])


def named_tensors(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


def assert_same(ours, theirs, steps):
    """Two quantized networks have the same tensors and say the same at every step, bit for bit."""
    mine, others = named_tensors(ours.network), named_tensors(theirs.network)
    assert mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)
    assert ours.fingerprint() == theirs.fingerprint()
    for i in range(steps):
        assert torch.equal(outputs(ours, i), outputs(theirs, i))


def without_hooks(network):
    return not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
