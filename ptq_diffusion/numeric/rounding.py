"""Rounding that a gradient passes."""

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Rounds on the way forward; the gradient of its result is that of its argument."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return gradient


def straight_through(x: Tensor) -> Tensor:
    """x rounded to the nearest whole numbers, ties to even, with the gradient of x itself.

    The straight-through estimator of Bengio et al., arXiv 1308.3432. The values are those of `x.round()` bit for bit,
    infinities included, which x + (round(x) - x) would turn into NaN.
    """
    return _StraightThrough.apply(x)


class _Passing(torch.autograd.Function):
    """Gives other values on the way forward; the gradient of its result passes where it is told to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, passes: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        ctx.save_for_backward(passes)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (passes,) = ctx.saved_tensors
        return gradient * passes, None, None


def passing_through(x: Tensor, values: Tensor, passes: Tensor) -> Tensor:
    """Values of the shape and the dtype of x, with the gradient of x itself where `passes` and none elsewhere."""
    return _Passing.apply(x, values, passes)
