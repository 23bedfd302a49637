"""Objectives of trainings: an oracle's error is zero, and times are drawn as they say."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch.optim import SGD

from ptq_diffusion.sampler.process import FLOW, Process
from ptq_diffusion.stage.training.conditioned_network import ConditionedNetwork
from ptq_diffusion.stage.training.denoiser_training import DenoiserTraining
from ptq_diffusion.stage.training.objective import FlowMatching, MinSnr

BETAS = {kind: DDPMScheduler(prediction_type=kind) for kind in ("epsilon", "v_prediction", "sample")}
STRAIGHT = FlowMatchEulerDiscreteScheduler()
OBJECTIVES = {kind: MinSnr(5.0, scheduler) for kind, scheduler in BETAS.items()} | {
    FLOW: FlowMatching(0.0, 1.0, 0.5, STRAIGHT)
}


class Oracle(ConditionedNetwork):
    """The exact output of a model whose images are all one, by the processes that samplers have."""

    null = 3

    def __init__(self, kind, image):
        super().__init__()
        self.kind, self.image, self.labels = kind, image, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    @property
    def denoiser(self):
        raise NotImplementedError

    def process(self, t):
        if self.kind == FLOW:
            return Process.of_flow(float(t) / 1000)
        return Process.of_abar(float(BETAS[self.kind].alphas_cumprod[int(t)]), self.kind)

    def forward(self, x_t, t, labels):
        self.labels += labels.tolist()
        outputs = []
        for x, time in zip(x_t.double(), t, strict=True):
            p_x, p_m, _, _ = self.process(time).coefficients()
            outputs.append((self.image - p_x * x) / p_m)
        return torch.stack(outputs) + self.weight


def trained(kind, image):
    return DenoiserTraining(Oracle(kind, image), OBJECTIVES[kind], lambda p: SGD(p, 0.1), lambda step: 1.0, 0.9, 0.25)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_oracle_has_no_loss_and_another_network_has(kind):
    image = torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    module, x_0 = trained(kind, image), image.float().expand(512, 1, 2, 2)
    labels = torch.arange(512) % 3
    assert module.loss(x_0, labels, 1) < 1e-6
    assert 0.15 < sum(label == 3 for label in module.network.labels) / 512 < 0.35, "labels are left out"
    torch.nn.init.constant_(module.network.weight, 0.5)
    assert module.loss(x_0, labels, 1) > 1e-3


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.5, 0.7)])
def test_times_of_a_flow_are_logit_normal_or_uniform(mean, deviation):
    count = 4096
    logit_normal, uniform = (
        FlowMatching(mean, deviation, share, STRAIGHT).times(count, torch.Generator().manual_seed(0)) / 1000
        for share in (0.0, 1.0)
    )
    assert logit_normal.logit().mean() == pytest.approx(mean, abs=5 * deviation / count**0.5)
    assert logit_normal.logit().std() == pytest.approx(deviation, rel=0.1)
    assert uniform.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


@pytest.mark.parametrize(
    ("build", "remedy"),
    [
        (lambda: MinSnr(5.0, STRAIGHT), "got FlowMatchEulerDiscreteScheduler.*change training.scheduler"),
        (lambda: FlowMatching(0.0, 1.0, 0.0, BETAS["epsilon"]), "got DDPMScheduler.*change training.scheduler"),
        (lambda: FlowMatching(0.0, 1.0, 1.5, STRAIGHT), r"uniform_share within \[0, 1\]"),
        (lambda: FlowMatching(0.0, -1.0, 0.0, STRAIGHT), "deviation > 0, got -1.0"),
        (lambda: MinSnr(0.0, BETAS["epsilon"]), "gamma > 0, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(build, remedy):
    with pytest.raises(ValueError, match=remedy):
        build()
