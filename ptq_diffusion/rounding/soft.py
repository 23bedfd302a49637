"""Integers that are still undecided between the two next to a weight."""

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from ptq_diffusion.numeric.grid import Grid

LOW, HIGH = -0.1, 1.1
"""The ends of the stretched sigmoid, beyond which it is cut off: gamma and zeta of the paper."""
SHARPEST, SOFTEST = 20.0, 2.0
"""The first and the last exponent of the penalty."""


class SoftIntegers(nn.Module):
    """n = z + floor(w / s) + h(v) with h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1), the rectified sigmoid.

    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020, arXiv 2004.10568, eq. 22 to
    25. It starts at the weight itself, as far as the grid reaches, and ends at the integer below or above it.

    Args:
        weight: w, any shape.
        scale: s of every element, of the weight's shape.
        zero_point: z of every element.
        grid: of the integers.
    """

    below: Tensor
    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        super().__init__()
        position = weight.float() / scale
        self.register_buffer("below", position.floor())
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("low", (grid.low - zero_point).float())
        self.register_buffer("high", (grid.high - zero_point).float())
        self.grid = grid
        share = (position - self.below - LOW) / (HIGH - LOW)
        self.v = nn.Parameter(torch.logit(share))

    @torch.no_grad()
    def up(self) -> Tensor:
        """h, between 0 for the integer below and 1 for the one above."""
        return torch.sigmoid(self.v).mul_(HIGH - LOW).add_(LOW).clamp_(0, 1)

    @torch.no_grad()
    def values(self) -> Tensor:
        """The values that the undecided integers stand for."""
        return (self.below + self.up()).clamp_(self.low, self.high).mul_(self.scale)

    @torch.no_grad()
    def gradient(self, by_values: Tensor, penalty: float, sharpness: float) -> Tensor:
        """The gradient by v of a loss plus a penalty times the mean of 1 - |2 h - 1|^beta over all elements.

        Decided integers have no penalty. It is written out, as automatic differentiation takes several times as long.

        Args:
            by_values: the gradient of the loss by `values`.
            penalty: its factor.
            sharpness: beta.
        """
        share, up = torch.sigmoid(self.v), self.up()
        position = self.below + up
        gradient = (by_values * self.scale).mul_((position >= self.low) & (position <= self.high))
        if penalty:
            side = up.mul(2).sub_(1)
            power = side.abs().pow_(sharpness - 1).mul_(side.sign_())
            gradient.add_(power, alpha=-2 * sharpness * penalty / up.numel())
        # The derivative of h, 0 where it is cut off.
        inside = (up > 0) & (up < 1)
        return gradient.mul_(inside).mul_(share.sub(1).mul_(share)).mul_(LOW - HIGH)

    @torch.no_grad()
    def integers(self) -> Tensor:
        """The integers as they are decided now, int32."""
        integers = self.below + (self.up() >= 0.5) + self.zero_point
        return integers.clamp(self.grid.low, self.grid.high).to(torch.int32)


@dataclass(frozen=True)
class Descent:
    """How undecided integers are led to a decision.

    Args:
        iterations: steps of Adam.
        learning_rate: of Adam.
        penalty: the factor of the penalty of undecided integers, in units of the error of nearest.
        warmup: the share of the iterations without it.

    Raises:
        ValueError: no iteration, a rate that is not positive, a negative penalty, or no share.
    """

    iterations: int
    learning_rate: float = 0.03
    penalty: float = 3.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"expected at least 1 iteration and a positive learning_rate, got {self.iterations} and "
                f"{self.learning_rate}; rounding=nearest learns nothing"
            )
        if not 0 <= self.penalty < float("inf") or not 0 <= self.warmup < 1:
            raise ValueError(
                f"expected a penalty of at least 0 and a warmup of 0 up to 1, got {self.penalty} and {self.warmup}"
            )

    def gradient(self, soft: SoftIntegers, by_values: Tensor, iteration: int, share: float) -> Tensor:
        """The gradient by the undecided integers at one iteration, that of the penalty added.

        Args:
            soft: the integers.
            by_values: the gradient by their values.
            iteration: from 0 on; beta falls from 20 to 2 along a cosine behind the warmup.
            share: how much of the penalty these integers have.
        """
        behind = iteration / self.iterations - self.warmup
        if behind < 0:
            return soft.gradient(by_values, 0.0, SHARPEST)
        beta = SOFTEST + (SHARPEST - SOFTEST) * 0.5 * (1 + cos(pi * behind / (1 - self.warmup)))
        return soft.gradient(by_values, self.penalty * share, beta)
