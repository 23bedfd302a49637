"""The Lightning module that trains an autoencoder of images."""

from collections.abc import Callable

import lightning as L
import torch
from diffusers import AutoencoderKL
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class AutoencoderTraining(L.LightningModule):
    """Reconstruction from a noisy code: the mean of |x - D(z)| + l_e |dx - dD(z)| + l_k KL(q(z|x), N(0, 1)) an element.

    The second term compares the differences of neighbouring pixels along rows and columns, so that edges stay sharp.

    Args:
        network: the autoencoder.
        optimizer: from parameters to an optimizer.
        rate: the learning rate's factor as a function of the step.
        edge_weight: l_e.
        kl_weight: l_k.
    """

    def __init__(
        self,
        network: AutoencoderKL,
        optimizer: Callable[..., Optimizer],
        rate: Callable[[int], float],
        edge_weight: float,
        kl_weight: float,
    ) -> None:
        super().__init__()
        self.network, self.edge_weight, self.kl_weight = network, edge_weight, kl_weight
        self._optimizer, self._rate = optimizer, rate

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        images = batch["images"]
        posterior = self.network.encode(images).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        draw = torch.Generator().manual_seed(int(batch["draw"]))
        code = mean + deviation * torch.randn(mean.shape, generator=draw).to(mean.device)
        error = self.network.decode(code).sample.float() - images
        kl = (mean.square() + deviation.square() - 1).mean() / 2 - deviation.log().mean()
        loss = error.abs().mean() + self.edge_weight * edges(error) + self.kl_weight * kl
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/psnr", -10 * F.mse_loss(error / 2, torch.zeros_like(error)).log10(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self._optimizer(self.network.parameters())
        # A function and not the object itself: LambdaLR would keep the object's old length in every checkpoint.
        schedule = LambdaLR(optimizer, lambda step: self._rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def edges(error: Tensor) -> Tensor:
    """The mean absolute difference of neighbouring pixels, (B, C, H, W) to a scalar."""
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
