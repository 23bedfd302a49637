"""Calibration sets in which all steps count alike."""

import torch
from torch import Tensor

from ptq_diffusion.data.calibration.calibration_set import CalibrationSet, DrawnSet
from ptq_diffusion.data.calibration.chosen_states import ChosenStates


class UniformSet(CalibrationSet):
    """Every state of every image."""

    def size(self, steps: int, images: int) -> int:
        return steps * images

    def states(self, steps: int, images: int, seed: int, features: Tensor | None = None) -> ChosenStates:  # noqa: ARG002
        return ChosenStates.every(steps, images)


class UniformDraw(DrawnSet):
    """Some states of every image, at steps that are all as likely: the control of a set that prefers some.

    Args:
        states_per_image: how many.
    """

    def weights(self, steps: int, features: Tensor | None) -> Tensor:  # noqa: ARG002
        return torch.ones(steps, dtype=torch.float64)
