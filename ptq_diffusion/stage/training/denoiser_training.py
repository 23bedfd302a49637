"""The Lightning module that trains a denoiser."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ptq_diffusion.stage.training.conditioned_network import ConditionedNetwork
from ptq_diffusion.stage.training.objective import Objective
from ptq_diffusion.stage.training.resumable_fit import Training


class DenoiserTraining(Training[ConditionedNetwork]):
    """A training objective, and an exponential moving average of the weights.

    The loss of a step is the mean over images of w(t) times the mean square of m - target.

    Args:
        network: the network with its condition.
        objective: the times, the states, the targets and w.
        optimizer: from parameters to an optimizer.
        rate: the learning rate's factor as a function of the step.
        ema_decay: the decay per step of the moving average.
        unlabelled_share: the share of labels that the null label replaces, for classifier-free guidance (Ho and
            Salimans, arXiv 2207.12598).
    """

    def __init__(
        self,
        network: ConditionedNetwork,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        rate: Callable[[int], float],
        ema_decay: float,
        unlabelled_share: float,
    ) -> None:
        super().__init__(network, optimizer, rate)
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        self.objective, self.unlabelled_share = objective, unlabelled_share

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        loss = self.loss(batch["images"], batch["labels"], int(batch["draw"]))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def loss(self, x_0: Tensor, labels: Tensor, seed: int) -> Tensor:
        """The weighted error of one batch, (B, C, H, W) and its labels (B,), at times and noise drawn from `seed`."""
        draw = torch.Generator().manual_seed(seed)
        t = self.objective.times(len(x_0), draw).to(x_0.device)
        noise = torch.randn(x_0.shape, generator=draw).to(x_0.device)
        if self.network.null is not None:
            dropped = torch.rand(len(labels), generator=draw).to(labels.device) < self.unlabelled_share
            labels = torch.where(dropped, self.network.null, labels)
        x_t, target, weight = self.objective.noised(x_0, noise, t)
        prediction = self.network(x_t, t, labels).float()
        return (weight * (prediction - target).square().mean((1, 2, 3))).mean()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """The step and the average together: a checkpoint is saved before `on_train_batch_end` would run."""
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.network)
