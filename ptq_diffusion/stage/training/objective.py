"""Training objectives: the states that a denoiser is shown, the output that is its target, and its error's weight."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor


class Noised(NamedTuple):
    """Images at their times.

    Args:
        x_t: the states, (B, C, H, W).
        target: the output that the network is to give there, (B, C, H, W).
        weight: of each image's mean squared error, (B,).
    """

    x_t: Tensor
    target: Tensor
    weight: Tensor


PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""The prediction types of a process of betas."""


class Objective(ABC):
    """A forward process with the times, the target and the weights of a training.

    Attributes:
        scheduler: of the process, saved beside the network.
    """

    scheduler: DDPMScheduler | DDIMScheduler | FlowMatchEulerDiscreteScheduler

    @abstractmethod
    def times(self, count: int, draw: torch.Generator) -> Tensor:
        """Times as the network is told them, (count,), drawn from `draw`."""

    @abstractmethod
    def noised(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Noised:
        """States, targets and weights of images and noise, both (B, C, H, W), at times (B,)."""


class MinSnr(Objective):
    """The scheduler's prediction at uniform times, weighed by the clamped signal-to-noise ratio.

    The weight is min(SNR, gamma) / SNR for epsilon prediction, / (SNR + 1) for v and min(SNR, gamma) for x_0 (Hang et
    al., ICCV 2023, arXiv 2303.09556).

    Args:
        gamma: the clamp.
        scheduler: the process, of betas, and the prediction type.

    Raises:
        ValueError: the scheduler is of flow matching or of another prediction type, or the clamp is not positive.
    """

    def __init__(self, gamma: float, scheduler: DDPMScheduler | DDIMScheduler) -> None:
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(
                "expected the scheduler of a process of betas, such as DDPMScheduler, got FlowMatchEulerDiscrete"
                "Scheduler, which training.objective FlowMatching is for; change training.scheduler or "
                "training.objective"
            )
        if (kind := scheduler.config.prediction_type) not in PREDICTIONS:
            raise ValueError(
                f"expected training.scheduler.prediction_type of {', '.join(PREDICTIONS)}, got {kind!r}; change it"
            )
        if not gamma > 0:
            raise ValueError(f"expected training.objective.gamma > 0, got {gamma}; change it")
        self.gamma, self.scheduler = gamma, scheduler

    def times(self, count: int, draw: torch.Generator) -> Tensor:
        return torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=draw)

    def noised(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Noised:
        abar = self.scheduler.alphas_cumprod.to(x_0.device)[t]
        snr = abar / (1 - abar)
        clamped = snr.clamp(max=self.gamma)
        x_t, kind = self.scheduler.add_noise(x_0, noise, t), self.scheduler.config.prediction_type
        if kind == "epsilon":
            return Noised(x_t, noise, clamped / snr)
        if kind == "v_prediction":
            return Noised(x_t, self.scheduler.get_velocity(x_0, noise, t), clamped / (snr + 1))
        return Noised(x_t, x_0, clamped)


class FlowMatching(Objective):
    """The velocity epsilon - x_0 of the straight path x_t = (1 - s) x_0 + s epsilon, unweighted (rectified flow).

    Liu et al., ICLR 2023, arXiv 2209.03003; Lipman et al., ICLR 2023, arXiv 2210.02747. The time given is t = s T. s
    is logit-normal, as for Stable Diffusion 3 (Esser et al., ICML 2024, arXiv 2403.03206), and uniform for a share of
    the images, as the density of the former is 0 at both ends, where samplers begin and stop.

    Args:
        mean: of the logit of s.
        deviation: its standard deviation.
        uniform_share: 0 for the logit-normal times alone, 1 for uniform ones alone.
        scheduler: tells T.

    Raises:
        ValueError: the scheduler is not of flow matching, the share is none, or the deviation is not positive.
    """

    def __init__(
        self, mean: float, deviation: float, uniform_share: float, scheduler: FlowMatchEulerDiscreteScheduler
    ) -> None:
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(
                "expected the scheduler of flow matching, FlowMatchEulerDiscreteScheduler, got "
                f"{type(scheduler).__name__}, which training.objective MinSnr is for; change training.scheduler or "
                "training.objective"
            )
        if not 0 <= uniform_share <= 1:
            raise ValueError(f"expected training.objective.uniform_share within [0, 1], got {uniform_share}; change it")
        if not deviation > 0:
            raise ValueError(f"expected training.objective.deviation > 0, got {deviation}; change it")
        self.mean, self.deviation, self.uniform_share, self.scheduler = mean, deviation, uniform_share, scheduler

    def times(self, count: int, draw: torch.Generator) -> Tensor:
        normal, uniform, choice = (method(count, generator=draw) for method in (torch.randn, torch.rand, torch.rand))
        s = torch.where(choice < self.uniform_share, uniform, torch.sigmoid(self.mean + self.deviation * normal))
        return s * self.scheduler.config.num_train_timesteps

    def noised(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Noised:
        s = (t / self.scheduler.config.num_train_timesteps)[:, None, None, None]
        return Noised((1 - s) * x_0 + s * noise, noise - x_0, torch.ones_like(t))
