"""Products of 8-bit integers on one type of device: the contract, and what a product is made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.network.backend.cache import SharedCache
from ptq_diffusion.network.integers import QuantizedWeight
from ptq_diffusion.quantizer import Numbers

MISSING = (AttributeError, TypeError, RuntimeError, NotImplementedError)
"""The errors of an operator that torch lacks, or that takes no such operands here."""
Product = Callable[[Tensor], Tensor]
"""From a layer's input, its shift taken off, to its output, float32."""


@dataclass(frozen=True)
class Geometry:
    """The geometry of a convolution whose padding is of zeros.

    Args:
        stride: down and across, as padding and dilation.
        padding: on either side.
        dilation: of the kernel.
        groups: of channels.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Operands:
    """All that the product of a layer at one step is made of, but for its input.

    Args:
        weight: the copy that is used at the step.
        numbers: of the grid of the input, in which zero is the integer 0.
        scale: s_w by output channel with the gain of the step, (O,) float32.
        bias: with the offset of the step and the product of its shift, (O,) float32, or None.
        geometry: of a convolution; None of a linear layer.
        packed: orders of the weight, which all steps and copies share.
    """

    weight: QuantizedWeight
    numbers: Numbers
    scale: Tensor
    bias: Tensor | None
    geometry: Geometry | None
    packed: SharedCache


class Products(ABC):
    """Products of 8-bit integers as one type of device has them."""

    @abstractmethod
    def require(self, device: torch.device) -> None:
        """Try the operators on sums that are known.

        Raises:
            RuntimeError: torch lacks an operator on this device, or it computes something else there.
        """

    @abstractmethod
    def product(self, operands: Operands) -> Product:
        """The product of operands that are on such a device: y = s_x s_w (sum (u - z) n) + b."""
