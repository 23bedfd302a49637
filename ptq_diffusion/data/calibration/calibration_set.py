"""The contract of a calibration set: which states of float sampling it holds."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ptq_diffusion.data.calibration.chosen_states import ChosenStates
from ptq_diffusion.numeric.seed import generator


class CalibrationSet(ABC):
    """A rule that chooses states among those of N images at S steps, step 0 at t = T.

    Attributes:
        feature_images: how many images it reads features of, at every step; 0 of a rule that needs no trajectories.
    """

    feature_images: int = 0

    @abstractmethod
    def size(self, steps: int, images: int) -> int:
        """The number of states.

        Raises:
            ValueError: the rule does not fit so many steps or images; the message says what to lower.
        """

    @abstractmethod
    def states(self, steps: int, images: int, seed: int, features: Tensor | None = None) -> ChosenStates:
        """The choice.

        Args:
            steps: S.
            images: N.
            seed: of the images.
            features: of the network at every step, (S, P, C): C channels at P places of some images; None where the
                rule reads none.

        Raises:
            ValueError: see `size`.
        """


class DrawnSet(CalibrationSet):
    """Some states of every image, whose steps are drawn without repetition, with a weight for each step.

    The draw belongs to the image: more images leave those that were there as they are. Of one state for each image
    the weights are probabilities.

    Args:
        states_per_image: how many.

    Raises:
        ValueError: fewer than one.
    """

    def __init__(self, states_per_image: int) -> None:
        if states_per_image < 1:
            raise ValueError(
                f"expected at least 1 state of each image, got {states_per_image}; raise "
                "calibration_set.states_per_image"
            )
        self.states_per_image = states_per_image

    @abstractmethod
    def weights(self, steps: int, features: Tensor | None) -> Tensor:
        """The weight of every step, (S,) float64, none negative."""

    def size(self, steps: int, images: int) -> int:
        if self.states_per_image > steps:
            raise ValueError(
                f"expected at most as many states of an image as there are steps, {steps}, got "
                f"{self.states_per_image}; lower calibration_set.states_per_image"
            )
        return images * self.states_per_image

    def states(self, steps: int, images: int, seed: int, features: Tensor | None = None) -> ChosenStates:
        self.size(steps, images)
        weights, chosen = self.weights(steps, features), torch.zeros(steps, images, dtype=torch.bool)
        if (possible := int((weights > 0).sum())) < self.states_per_image:
            raise ValueError(
                f"expected at least {self.states_per_image} steps with a weight to draw from, got {possible} of "
                f"{steps}; lower calibration_set.states_per_image or choose another calibration_set"
            )
        for image in range(images):
            draw = generator("calibration set", seed, image)
            chosen[torch.multinomial(weights, self.states_per_image, generator=draw), image] = True
        return ChosenStates(chosen)
