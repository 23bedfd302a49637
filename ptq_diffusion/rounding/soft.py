"""Integers that are still undecided between the two next to a weight."""

from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from ptq_diffusion.numeric.grid import Grid

LOW, HIGH = -0.1, 1.1
"""The ends of the stretched sigmoid, beyond which it is cut off: gamma and zeta of the paper."""
SHARPEST, SOFTEST = 20.0, 2.0
"""The first and the last exponent of the penalty."""


class _Undecided(torch.autograd.Function):
    """The mean of 1 - |2 h - 1|^beta, which takes one power for itself and its gradient."""

    @staticmethod
    def forward(ctx: Any, up: Tensor, beta: float) -> Tensor:  # noqa: ANN401
        side = 2 * up - 1
        size = side.abs()
        power = size.pow(beta - 1)
        mean = 1 - power.mul(size).mean()
        ctx.save_for_backward(power.mul_(side.sign_()).mul_(-2 * beta / side.numel()))
        return mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (slope,) = ctx.saved_tensors
        return gradient * slope, None


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

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        super().__init__()
        position = weight.float() / scale
        self.register_buffer("below", position.floor())
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.grid = grid
        share = (position - self.below - LOW) / (HIGH - LOW)
        self.v = nn.Parameter(torch.logit(share))

    def up(self) -> Tensor:
        """h, between 0 for the integer below and 1 for the one above."""
        return (torch.sigmoid(self.v) * (HIGH - LOW) + LOW).clamp(0, 1)

    def values(self, up: Tensor | None = None) -> Tensor:
        """The values that the undecided integers stand for, with a gradient by v.

        Args:
            up: h, where it is at hand.
        """
        low, high = self.grid.low - self.zero_point, self.grid.high - self.zero_point
        return (self.below + (self.up() if up is None else up)).clamp(low, high) * self.scale

    def penalty(self, progress: float, warmup: float, up: Tensor | None = None) -> Tensor:
        """The mean of 1 - |2 h - 1|^beta over all elements, which decided ones do not have.

        Args:
            progress: the share of the iterations that is done, from which beta falls from 20 to 2 along a cosine.
            warmup: the share before which there is no penalty.
            up: h, where it is at hand.
        """
        if progress < warmup:
            return self.v.new_zeros((), requires_grad=True)
        left = (1 - progress) / (1 - warmup)
        beta = SOFTEST + (SHARPEST - SOFTEST) * 0.5 * (1 + cos((1 - left) * pi))
        return _Undecided.apply(self.up() if up is None else up, beta)

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
    learning_rate: float
    penalty: float
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
