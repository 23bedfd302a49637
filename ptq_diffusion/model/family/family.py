"""The contract of a family: what is particular to one diffusers class of networks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import ModelMixin
from torch import Tensor, nn

from ptq_diffusion.model.condition import Condition


class Family(ABC):
    """The call and the layout of networks of one diffusers class. It has no state: one instance serves all networks.

    Class attributes:
        network_class: the diffusers class.
        first: the name of the layer that states enter by.
        last: the name of the output layer.
    """

    network_class: ClassVar[type[ModelMixin]]
    first: ClassVar[str]
    last: ClassVar[str]

    @abstractmethod
    def shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """The shape (C, H, W) of one latent, from the network's configuration.

        Raises:
            ValueError: a network that this family cannot ask; the message says why.
        """

    def answers_at_zero(self, config: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether a network of this configuration can be told t = 0."""
        return True

    def needs(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:  # noqa: ARG002
        """The tensors of a condition that the network reads, by name, and the shape of a usual row of each."""
        return {}

    def classes(self, config: Mapping[str, Any]) -> int | None:  # noqa: ARG002
        """The number of classes of a network that reads labels, "no class" left out; None of others."""
        return None

    def null(self, config: Mapping[str, Any]) -> Condition | None:  # noqa: ARG002
        """The condition of one sample that means no class; None where a network knows none."""
        return None

    @abstractmethod
    def call(self, network: nn.Module, x_t: Tensor, t: float | Tensor, condition: Condition | None) -> Tensor:
        """The network's native output, (B, C or more, H, W): a predicted variance comes after the first C channels.

        Args:
            network: of the class, or a quantized copy of one.
            x_t: states, (B, C, H, W).
            t: the time of all of them.
            condition: of the B samples.
        """

    @abstractmethod
    def blocks(self, network: nn.Module) -> Sequence[str]:
        """The names of the residual and attention blocks, in the order of computation."""

    def attentions(self, network: nn.Module) -> Sequence[str]:  # noqa: ARG002
        """The names of the attention layers whose products are sites; those of all others are always float.

        Each is an `Attention` of diffusers that computes as `AttnProcessor` does: with `to_q`, `to_k` and `to_v`, and
        without norms of q and k.
        """
        return ()
