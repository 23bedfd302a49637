"""The contract of a backend."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from ptq_diffusion.network.attention import QuantizedAttention
from ptq_diffusion.network.layer import QuantizedLayer


class Backend(ABC):
    """Computes the layers of a quantized network from the integers and the settings by step that they hold.

    Class attributes:
        name: in the group `backend` of a configuration, and for `QuantizedDenoiser.to_backend`.
    """

    name: ClassVar[str]

    @abstractmethod
    def require(self, device: torch.device) -> None:
        """Try what layers are computed with.

        Raises:
            RuntimeError: a device of this type, or this build of torch, does not have it.
        """

    @abstractmethod
    def obstacle(self, part: QuantizedLayer | QuantizedAttention) -> str | None:
        """Why a layer, or the products of an attention layer, cannot be computed, in words; None where they can.

        A layer is accepted only if all that it holds is known: its weight's kind and granularity, and its input's.
        """

    @abstractmethod
    def layer(self, layer: QuantizedLayer) -> QuantizedLayer:
        """The layer as it is computed here, with the same integers, bias, settings and current step."""


def require_float32(dtype: torch.dtype, what: str) -> None:
    """Refuse a network that computes between its layers in another dtype.

    Args:
        dtype: of the network.
        what: reads float32 alone.

    Raises:
        ValueError: it is another.
    """
    if dtype is not torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"expected a network in float32 for {what}, got one in {name}; set model.dtype=float32")
