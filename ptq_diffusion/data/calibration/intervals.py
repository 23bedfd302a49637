"""Calibration sets at steps with equal gaps."""

import torch
from torch import Tensor

from ptq_diffusion.data.calibration.calibration_set import CalibrationSet
from ptq_diffusion.data.calibration.chosen_states import ChosenStates


class IntervalSet(CalibrationSet):
    """Every k-th step from t = T on, of the same images (Q-Diffusion, Li et al., ICCV 2023, arXiv 2302.04304).

    Args:
        every: k; 1 takes all steps.
        states_per_step: how many states of each of those steps, of the first images; None for all images.

    Raises:
        ValueError: an interval or a number of states below 1.
    """

    def __init__(self, every: int, states_per_step: int | None) -> None:
        if every < 1 or (states_per_step is not None and states_per_step < 1):
            raise ValueError(
                f"expected an interval of at least 1 step and at least 1 state of a step, got {every} and "
                f"{states_per_step}; set calibration_set.every and calibration_set.states_per_step"
            )
        self.every, self.states_per_step = every, states_per_step

    def size(self, steps: int, images: int) -> int:
        if self.every > steps:
            raise ValueError(
                f"expected an interval of at most the {steps} steps of the sampler, got {self.every}; lower "
                "calibration_set.every or raise sampler.steps"
            )
        if self.states_per_step is not None and self.states_per_step > images:
            raise ValueError(
                f"expected at most as many states of a step as calibration.images, {images}, got "
                f"{self.states_per_step}; lower calibration_set.states_per_step or raise calibration.images"
            )
        return -(-steps // self.every) * (self.states_per_step or images)

    def states(self, steps: int, images: int, seed: int, features: Tensor | None = None) -> ChosenStates:  # noqa: ARG002
        self.size(steps, images)
        chosen = torch.zeros(steps, images, dtype=torch.bool)
        chosen[:: self.every, : self.states_per_step] = True
        return ChosenStates(chosen)
