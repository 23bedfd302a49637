"""The Lightning module that trains the feature network as a classifier."""

from collections.abc import Callable

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ptq_diffusion.metric.feature.resnet9 import ResNet9


class FeatureNetworkTraining(L.LightningModule):
    """Classification with smoothed labels: the cross entropy to (1 - s) onehot(y) + s / K.

    Args:
        network: the classifier.
        optimizer: from parameters to an optimizer.
        rate: the learning rate's factor as a function of the step.
        label_smoothing: s, in [0, 1).
    """

    def __init__(
        self,
        network: ResNet9,
        optimizer: Callable[..., Optimizer],
        rate: Callable[[int], float],
        label_smoothing: float,
    ) -> None:
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing
        self._optimizer, self._rate = optimizer, rate

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        images, labels = (batch["images"] + 1) / 2, batch["labels"]
        logits = self.network.logits(self.network(images)).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self._optimizer(self.network.parameters())
        # A function and not the object itself: LambdaLR would keep the object's old length in every checkpoint.
        schedule = LambdaLR(optimizer, lambda step: self._rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
