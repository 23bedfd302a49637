"""Inputs of the two rows of guidance, one quantized as its difference from the other."""

from collections.abc import Callable

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import Numbers


def by_difference(x: Tensor, on_grid: Callable[[Tensor], Tensor], numbers: Numbers) -> Tensor:
    """x_hat of pairs of rows: c_hat = Q(c) with the condition, and c_hat + Q'(n - c) with the null condition.

    Guidance with scale s makes c - (s - 1)(n - c) of them. Where both meet one grid, each has a rounding error of its
    own, and guidance multiplies one by s and the other by s - 1. Here the error of c enters once, and s - 1 times that
    of n - c, whose grid is the finer the less the rows differ. The product of the weight with n_hat is that with c_hat
    plus that with Q'(n - c): as many multiplications, of as many bits, and a sum of outputs.

    MoDiff (ICML 2025) quantizes changes between steps in this way; here they are between rows of one step.

    Args:
        x: (2 B, ...), the rows of the null condition first.
        on_grid: Q.
        numbers: of Q'.
    """
    null, conditional = x.chunk(2)
    base = on_grid(conditional)
    return torch.cat([base + numbers.fake_quantized(null.float() - conditional.float()), base])


def numbers_of_difference(scale: Tensor, grid: Grid) -> Numbers:
    """The numbers of the grid of differences: symmetric, of as many bits as the grid of the rows.

    Args:
        scale: (1,) float32.
        grid: of the rows.
    """
    return Numbers.of(scale, torch.zeros(1, dtype=torch.int32), Grid(grid.bits, symmetric=True))
