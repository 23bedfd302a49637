"""States of some images at one step of a path, all that a network is asked about there."""

from typing import NamedTuple

from torch import Tensor

from ptq_diffusion.model import Condition
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.sampler.step import Step


class PathState(NamedTuple):
    """The states of some images at a step, in the order of `Denoiser.predict`.

    Args:
        x_t: (B, C, H, W).
        step: the row of the table.
        condition: of the images; None for an unconditional model.
    """

    x_t: Tensor
    step: Step
    condition: Condition | None

    def images(self, chosen: Tensor | slice) -> "PathState":
        """The states of some of the images, by marks (B,) bool or a slice."""
        return PathState(self.x_t[chosen], self.step, rows_of(self.condition, chosen))
