"""The contract of a model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ptq_diffusion.model.site import Site


class Denoiser(nn.Module, ABC):
    """A network with what sampling needs to know of it.

    Attributes:
        shape: of one latent, (C, H, W).
        scheduler_config: the configuration of the diffusers scheduler that it was trained with, with its prediction
            type.
    """

    shape: tuple[int, int, int]
    scheduler_config: Mapping[str, Any]

    @abstractmethod
    def predict(self, x_t: Tensor, t: float) -> Tensor:
        """The native output m (epsilon, v or x0), (B, C, H, W), of states (B, C, H, W) that all are at time t."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The module whose layers the sites name."""

    @abstractmethod
    def sites(self) -> Sequence[Site]:
        """Every layer that can be quantized, in the network's order."""

    @abstractmethod
    def attention_macs(self) -> int:
        """Multiply-accumulates of one forward of one sample that belong to no site: the products QK^T and PV."""

    @abstractmethod
    def with_network(self, network: nn.Module) -> "Denoiser":
        """The same model around another network, such as a quantized copy; this one stays as it is."""

    def decode(self, x_0: Tensor) -> Tensor:
        """Images in [0, 1] from latents in [-1, 1]."""
        return (x_0 / 2 + 0.5).clamp(0, 1)
