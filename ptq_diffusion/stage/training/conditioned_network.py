"""The contract of a network in training: asked (x_t, t, labels), and saved as the folder of a stock pipeline."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDPMPipeline, ModelMixin, SchedulerMixin
from torch import Tensor, nn

from ptq_diffusion.stage.training.initialisation import find_autoencoder, require_weights, take_weights


class ConditionedNetwork(nn.Module, ABC):
    """A denoising network with whatever turns a label into its condition.

    Attributes:
        null: the label that means "no condition", which stands in for some labels in training; None without labels.
    """

    null: int | None

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The output at states (B, C, H, W), times (B,) and labels (B,), (B, C, H, W)."""

    @property
    @abstractmethod
    def denoiser(self) -> ModelMixin:
        """The network itself, of diffusers."""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the network itself, with `sample_size` and `in_channels`."""
        return dict(self.denoiser.config)

    def begin_from(self, path: str) -> None:
        """Take the weights of a saved model.

        Args:
            path: the folder, `bundled:NAME`, or `org/name` in the hub's local cache.

        Raises:
            ValueError: the model is another than this one.
        """
        take_weights(self.denoiser, path)

    def check_beginning(self, path: str) -> None:
        """Refuse a saved model that `begin_from` would, by its configurations alone; this may be on the meta device.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks one of its files.
            ValueError: the model is another than this one.
        """
        require_weights(self.denoiser, path)


class UnlabelledNetwork(ConditionedNetwork):
    """A network of pixels that is asked (x_t, t)."""

    null = None

    def __init__(self, network: ModelMixin) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        output: Tensor = self.network(x_t, t).sample
        return output

    @property
    def denoiser(self) -> ModelMixin:
        return self.network

    def save(self, out: Path, scheduler: SchedulerMixin) -> None:
        """Write a `DDPMPipeline` folder."""
        DDPMPipeline(self.network, scheduler).save_pretrained(out, safe_serialization=True)


class LatentNetwork(ConditionedNetwork):
    """A network of latents that is asked (x_t, t, labels)."""

    def check_beginning(self, path: str) -> None:
        find_autoencoder(path)
        super().check_beginning(path)

    @abstractmethod
    def save(self, out: Path, autoencoder: AutoencoderKL, scheduler: SchedulerMixin) -> None:
        """Write the folder of a stock pipeline, network and autoencoder in float16."""
