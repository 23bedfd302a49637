"""The Lightning module that trains an autoencoder of images."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from ptq_diffusion.stage.training.resumable_fit import Training


class AutoencoderTraining(Training[AutoencoderKL]):
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
        super().__init__(network, optimizer, rate)
        self.edge_weight, self.kl_weight = edge_weight, kl_weight

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


def edges(error: Tensor) -> Tensor:
    """The mean absolute difference of neighbouring pixels, (B, C, H, W) to a scalar."""
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
