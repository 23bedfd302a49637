"""Calibration sets whose steps are drawn from a skewed normal."""

import torch
from torch import Tensor

from ptq_diffusion.data.calibration.calibration_set import DrawnSet


class NDTC(DrawnSet):
    """Normally distributed time-step calibration of PTQ4DM (Shang et al., CVPR 2023, arXiv 2211.15736).

    A step is drawn as floor(clamp(S z, 0, S - 1)), z normal with a mean below a half, so that steps near x_0 are
    likelier; it counts from x_0, 0 being the last. A step beyond an end is the one at that end. The defaults of the
    paper's release are a mean and a deviation of 0.4.

    Args:
        states_per_image: how many states of each image; 1 in the paper.
        mean: of z, 0 at x_0 and 1 at x_T.
        deviation: of z.

    Raises:
        ValueError: the mean is outside of 0 to 1, or the deviation is not positive.
    """

    def __init__(self, states_per_image: int, mean: float, deviation: float) -> None:
        super().__init__(states_per_image)
        if not 0 <= mean <= 1 or not 0 < deviation < float("inf"):
            raise ValueError(
                f"expected a mean from 0 (x_0) to 1 (x_T) and a positive deviation, got {mean} and {deviation}; set "
                "calibration_set.mean and calibration_set.deviation"
            )
        self.mean, self.deviation = mean, deviation

    def weights(self, steps: int, features: Tensor | None) -> Tensor:  # noqa: ARG002
        inner = (torch.arange(1, steps, dtype=torch.float64) / steps - self.mean) / self.deviation
        edges = torch.cat([torch.zeros(1), torch.special.ndtr(inner), torch.ones(1)])
        return edges.diff().flip(0)
