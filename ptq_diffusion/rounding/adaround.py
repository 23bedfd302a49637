"""Rounding learned by gradients, layer by layer."""

import torch
from torch import Tensor

from ptq_diffusion.rounding.inputs import Inputs
from ptq_diffusion.rounding.rounding import LayerRounding, RowProblem
from ptq_diffusion.rounding.soft import Descent, SoftIntegers


class AdaRound(LayerRounding):
    """Each weight goes down or up as the layer's output changes least (Nagel et al., ICML 2020, arXiv 2004.10568).

    The paper takes the gradient on batches of inputs; this takes it on all of them at once, by their second moments,
    which gives the same loss of the layer's output and keeps no input. Rows are independent, and the error of each is
    in units of that of nearest rounding, so that one penalty serves all.

    Args:
        inputs: how the moments are taken.
        descent: how the integers are decided.
    """

    def __init__(self, inputs: Inputs, descent: Descent) -> None:
        super().__init__(inputs)
        self.descent = descent

    def rounded(self, problem: RowProblem) -> Tensor:
        soft = SoftIntegers(problem.target, problem.scale, problem.zero_point, problem.grid)
        error = problem.error(problem.nearest(problem.target))
        # A row that nearest meets exactly has nothing to learn.
        units = torch.where(error > 0, 1 / error, 0.0).float()[:, None]
        optimizer = torch.optim.Adam([soft.v], self.descent.learning_rate, fused=True)
        for iteration in range(self.descent.iterations):
            slope = 2 * units * ((soft.values() - problem.target) @ problem.second)
            soft.v.grad = self.descent.gradient(soft, slope, iteration, len(slope))
            optimizer.step()
        return soft.integers()
