"""Rules for factors that move the range of an input's channels into the weight that reads them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Equalisation(ABC):
    """A rule for the factors s of a layer, one for each channel of its input: (x_c / s_c) (s_c w_c) = x_c w_c.

    The layer computes the same; a grid that is shared by the channels meets x_c / s_c and s_c w_c. The division belongs
    to the quantized layer: what lies in front of it in a diffusion network, a skip connection or an activation
    function, can seldom take it in.

    Class attributes:
        equalises: whether any factor differs from 1.
    """

    equalises: ClassVar[bool] = True

    @abstractmethod
    def factors(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """s, (I,) float32, all positive.

        Args:
            inputs: the largest magnitude in each channel of the layer's input, (I,).
            weights: the largest magnitude of the weights that read each channel, (I,).
        """


class NoEqualisation(Equalisation):
    """s = 1: every channel as it is."""

    equalises = False

    def factors(self, inputs: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG002
        return torch.ones_like(inputs)


class SmoothQuant(Equalisation):
    """s_c = max|x_c|^alpha / max|w_c|^(1 - alpha), Xiao et al., ICML 2023, arXiv 2211.10438, eq. 4.

    A channel that is always 0, or that no weight reads, has s_c = 1, and so has one whose s_c or 1 / s_c float32 lacks.

    Args:
        alpha: the share of the range that goes into the weight: 0 gives all columns of the weight one magnitude, 1 all
            channels of the input.

    Raises:
        ValueError: alpha outside of 0 to 1.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(
                f"expected an alpha of 0 to 1, the share of the range for the weight, got {alpha}; set "
                "quantizer.equalisation.alpha"
            )
        self.alpha = alpha

    def factors(self, inputs: Tensor, weights: Tensor) -> Tensor:
        exponents = self.alpha * inputs.double().log2() - (1 - self.alpha) * weights.double().log2()
        factors, least = self.rounded(exponents).exp2(), torch.finfo(torch.float32).tiny
        usable = (inputs > 0) & (weights > 0) & (factors >= least) & (factors <= 1 / least)
        return torch.where(usable, factors, 1.0).float()

    def rounded(self, exponents: Tensor) -> Tensor:
        """The logarithms to base 2 that are taken, of those that the rule gives."""
        return exponents


class PowersOfTwo(SmoothQuant):
    """The powers of two nearest to the factors of `SmoothQuant`, of which a product is a shift and exact in float.

    The form of the channel scales of DMQ (Lee et al., ICCV 2025, arXiv 2507.12933), which votes for each exponent by
    the error of the input alone, on layers with skip connections, and quantizes the weight before it is shifted.
    """

    def rounded(self, exponents: Tensor) -> Tensor:
        return exponents.round()
