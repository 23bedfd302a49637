"""Noise planted in a synthetic output, and PTQD fitted to it."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from omegaconf import OmegaConf

from ptq_diffusion.correction import PTQD, Fingerprint, NoiseStatistics, StepMoments, fit_moments
from ptq_diffusion.main import CONF
from ptq_diffusion.sampler import DDIM

SHAPE = (3, 6, 5)
CONFIG = DDPMScheduler(clip_sample=False).config
STEPS = DDIM(8, 1.0, {}).table(CONFIG)
PAPER = {name: value for name, value in OmegaConf.load(CONF / "correction" / "ptqd.yaml").items() if name != "_target_"}
OFFSETS = torch.tensor([0.8, -0.5, 0.3]).double().view(3, 1, 1)  # E[m_c], far from 0
MU = torch.tensor([0.10, -0.04, 0.02]).double().view(3, 1, 1)


def planted(step, k=-0.1, v=0.01, mu=MU, count=50):
    """m, q = (1 + k) m + mu + r and x_t in float64; r is white of variance v."""
    m, r, x = torch.randn(3, count, *SHAPE, generator=torch.Generator().manual_seed(step.i)).double()
    m = m * torch.tensor([1.0, 0.5, 2.0]).double().view(3, 1, 1) + OFFSETS
    return m, (1 + k) * m + mu + v**0.5 * r, x


def statistics(steps, **noise):
    moments = [StepMoments.of(*planted(step, **noise)) for step in steps]
    return NoiseStatistics(Fingerprint("network", steps.fingerprint(), SHAPE), moments)


def fitted(steps=STEPS, options=None, **noise):
    return fit_moments(PTQD(**PAPER | (options or {})), statistics(steps, **noise), steps)


def terms_of(found):
    """k, the bias per channel and the report of every step."""
    affine = [step.repairs[0] for step in found.corrections]
    return [
        SimpleNamespace(k=float(own.k), bias=own.bias, report=report)
        for own, report in zip(affine, found.report(), strict=True)
    ]


def centred(x):
    return x - x.mean((0, 2, 3), keepdim=True)


every_k = pytest.mark.parametrize("k", [-0.3, -0.05, 0.0, 0.2])
