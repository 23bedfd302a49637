"""The Lightning module that trains the feature network as a classifier."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from ptq_diffusion.metric.feature.resnet9 import ResNet9
from ptq_diffusion.stage.training.resumable_fit import Training


class FeatureNetworkTraining(Training[ResNet9]):
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
        super().__init__(network, optimizer, rate)
        self.label_smoothing = label_smoothing

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        images, labels = (batch["images"] + 1) / 2, batch["labels"]
        logits = self.network.logits(self.network(images)).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", (logits.argmax(1) == labels).float().mean(), prog_bar=True)
        return loss
