"""Gaussian data, whose optimal denoiser is known exactly."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition
from ptq_diffusion.model.denoiser import Denoiser, Output, Timestep
from ptq_diffusion.model.site import Site


class GaussianDenoiser(Denoiser):
    """The exact E[epsilon | x_t] of data whose pixels are independent, N(mean, std^2).

    epsilon = sqrt(1 - abar) (x_t - sqrt(abar) mean) / (abar std^2 + 1 - abar). A sampler run with it ends in a Gaussian
    whose moments are known, so a correction can be checked against the truth.

    Args:
        shape: of one latent, (C, H, W).
        mean: of every pixel.
        std: of every pixel, positive.
    """

    def __init__(self, shape: tuple[int, int, int], mean: float, std: float) -> None:
        super().__init__()
        self.shape, self.mean, self.std = shape, mean, std
        scheduler = DDPMScheduler(clip_sample=False, variance_type="fixed_small")
        self.scheduler_config: Mapping[str, Any] = dict(scheduler.config)
        self._abar = scheduler.alphas_cumprod.double()

    @property
    def network(self) -> nn.Module:
        return self

    def predict(self, x_t: Tensor, step: Timestep, condition: Condition | None = None) -> Output:  # noqa: ARG002
        abar = self._abar_at(step.t)
        return Output((1 - abar) ** 0.5 * (x_t - abar**0.5 * self.mean) / (abar * self.std**2 + 1 - abar))

    def _abar_at(self, t: float) -> float:
        """Cumulative alpha; between whole times log-SNR is linear."""
        before, share = int(t), t - int(t)
        if share == 0:
            return float(self._abar[before])
        snr = torch.logit(self._abar[before : before + 2])
        return float(torch.sigmoid(snr[0] + share * (snr[1] - snr[0])))

    def sites(self) -> Sequence[Site]:
        return ()

    def attention_macs(self) -> int:
        return 0

    def with_network(self, network: nn.Module) -> Denoiser:
        if not isinstance(network, Denoiser):
            raise TypeError(f"expected a denoiser in place of the Gaussian one, got {type(network).__name__}")
        return network
