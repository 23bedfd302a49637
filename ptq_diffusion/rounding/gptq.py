"""Rounding with error feedback."""

import torch
from torch import Tensor

from ptq_diffusion.rounding.inputs import Inputs
from ptq_diffusion.rounding.rounding import LayerRounding, RowProblem


class GPTQ(LayerRounding):
    """Error feedback by second moments (Frantar et al., GPTQ, ICLR 2023, arXiv 2210.17323), of linear and convolution.

    The inputs of a row are rounded to nearest one after the other, and those that are still to come take over the error
    as far as they go along with it: w_k -= (w_j - w_hat_j) U_jk / U_jj with U^T U = H^-1, U upper triangular. Inputs of
    the greatest second moment go first. Moments without correlation leave nearest rounding.

    Args:
        inputs: how the moments are taken.
        damping: the share of the mean second moment that is added to each.

    Raises:
        ValueError: damping that is not positive; of `rounded`, moments that have no inverse in spite of it.
    """

    def __init__(self, inputs: Inputs, damping: float = 0.01) -> None:
        super().__init__(inputs)
        if not 0 < damping < float("inf"):
            raise ValueError(f"expected a damping above 0, without which some moments have no inverse, got {damping}")
        self.damping = damping

    def rounded(self, problem: RowProblem) -> Tensor:
        order = problem.second.diagonal().argsort(descending=True, stable=True)
        factor = self._factor(problem.second[order][:, order]).float()
        # Inputs in rows, which lie together in memory.
        values, scale = (part[:, order].T.contiguous() for part in (problem.target, problem.scale))
        zero_point = problem.zero_point[:, order].T.contiguous()
        integers, inverse = torch.empty_like(zero_point), 1 / scale
        low, high = problem.grid.low, problem.grid.high
        for j in range(len(values)):
            integers[j] = ((values[j] * inverse[j]).round() + zero_point[j]).clamp(low, high).to(torch.int32)
            error = (values[j] - (integers[j] - zero_point[j]) * scale[j]) / factor[j, j]
            values[j + 1 :].addcmul_(factor[j, j + 1 :, None], error, value=-1)
        return integers.T[:, order.argsort()]

    def _factor(self, second: Tensor) -> Tensor:
        """U of the damped moments, (n, n) float64.

        Raises:
            ValueError: they have no inverse in the precision of float64.
        """
        damped = second.double()
        mean = float(damped.diagonal().mean())
        # Inputs that are always 0 leave nothing to feed back.
        damped.diagonal().add_(self.damping * mean if mean > 0 else 1.0)
        # torch's LinAlgError is one.
        try:
            return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
        except RuntimeError as error:
            raise ValueError(
                f"expected second moments that have an inverse once they are damped, got {len(damped)} inputs of which "
                f"some are linear in others at damping={self.damping}; raise rounding.damping, such as to 0.01, or "
                "calibration.images"
            ) from error
