"""Networks, tables and measurements that can be counted on fingers."""

from types import SimpleNamespace

import torch

from ptq_diffusion.bitwidth import Sensitivity, StepSignal
from ptq_diffusion.model import Kind, Role, Site
from ptq_diffusion.model.architecture import Architecture

EIGHT = {"weight": 8, "activation": 8}
FIXED = {"first": EIGHT, "last": EIGHT, "attention": EIGHT, "patterns": []}


def site(name, role=Role.INNER, macs=10_000, size=(4, 4)):
    return Site(name, Kind.CONV2D, role, macs, size)


def architecture(*sites, attention=0, others=0):
    return Architecture(sites, attention, sum(site.weight_shape[0] * site.weight_shape[1] for site in sites) + others)


LINE = architecture(
    site("in", Role.FIRST, 500),
    site("a.conv", macs=30_000),
    site("a.emb", macs=2_000),
    site("b.conv", macs=70_000),
    site("out", Role.LAST, 500),
    attention=1_000,
    others=7,
)


def table(count, snr=None):
    """Rows of a sampler; SNR_F rises from 1e-3 to 1e3 unless it is said."""
    values = snr or [10 ** (-3 + 6 * i / max(count - 1, 1)) for i in range(count)]
    return [SimpleNamespace(i=i, t=float(count - i), snr=value, gain=1.0) for i, value in enumerate(values)]


def sensitivity(network, steps, weights, activations, seed=0):
    """Random damages that fall with the bits, of all layers."""
    stream = torch.Generator().manual_seed(seed)
    shape = (len(network.sites), steps)

    def falling(bits):
        scale = torch.rand(*shape, 1, generator=stream).double() + 0.1
        wobble = 0.5 + torch.rand(*shape, len(bits), generator=stream).double()
        return (scale * wobble * 4.0 ** -torch.tensor(bits).double()).cummin(-1).values

    names = tuple(site.name for site in network.sites)
    return Sensitivity(
        names, tuple(weights), tuple(activations), falling(weights), falling(activations), "net", "table"
    )


def signal(offered, steps):
    """SNR_Q that grows 16 times with every offer, of all steps alike: 1, 16, ... as a ratio of powers."""
    error = 16.0 ** -torch.arange(len(offered)).double()
    return StepSignal(
        tuple(offered), torch.ones(len(offered), steps).double(), error[:, None].repeat(1, steps), "n", "t"
    )
