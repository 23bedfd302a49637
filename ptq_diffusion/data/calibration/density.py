"""Calibration sets whose steps are weighted by density and diversity of the network's features."""

import torch
from torch import Tensor

from ptq_diffusion.data.calibration.calibration_set import DrawnSet


class DensitySet(DrawnSet):
    """Temporal distribution alignment of EDA-DM (Liu et al., arXiv 2401.04585).

    With f_i the features at step i, density D_i counts the other steps whose mean squared distance to f_i is within a
    radius, diversity V_i is the sum over the other steps and all places of 1 - the cosine of the channels of both.
    Each is scaled to 0 to 1 over the steps, to 1 where they are alike, and a step's weight is D_i + lambda V_i.

    It departs from the paper's release in three points: the radius is in units of the mean distance of all pairs,
    where theirs is a number for each network (3 on CIFAR-10, 0.3 on LSUN); features are the outputs of the narrowest
    block, theirs the inputs of the attention in the middle of a UNet; and steps are drawn with the weights, theirs are
    dealt in proportion to them.

    Args:
        states_per_image: how many states of each image; 1 in the paper.
        images: how many images features are taken of, the first; all where there are fewer.
        radius: in units of the mean squared distance of two steps.
        diversity: lambda.

    Raises:
        ValueError: no image, a radius that is not positive or a negative lambda.
    """

    def __init__(self, states_per_image: int, images: int, radius: float, diversity: float) -> None:
        super().__init__(states_per_image)
        if images < 1 or not 0 < radius < float("inf") or not 0 <= diversity < float("inf"):
            raise ValueError(
                "expected at least 1 image, a positive radius and a diversity of at least 0, got "
                f"{images}, {radius} and {diversity}; set calibration_set.images, .radius and .diversity"
            )
        self.feature_images, self.radius, self.diversity = images, radius, diversity

    def weights(self, steps: int, features: Tensor | None) -> Tensor:  # noqa: ARG002
        assert features is not None, "a rule that reads features is given them"
        return _scaled(self._neighbours(features)) + self.diversity * _scaled(_unlikeness(features))

    def _neighbours(self, features: Tensor) -> Tensor:
        """The number of steps within the radius of each, (S,) float64."""
        flat = features.double().flatten(1)
        distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
        others = ~torch.eye(len(flat), dtype=torch.bool)
        return ((distance <= self.radius * distance[others].mean()) & others).sum(1).double()


def _unlikeness(features: Tensor) -> Tensor:
    """The sum over all other steps and all places of 1 - the cosine of the channels, (S,) float64."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1).flatten(1)
    cosines = unit @ unit.T
    return (cosines.diagonal()[:, None] - cosines).sum(1)


def _scaled(values: Tensor) -> Tensor:
    """Values from 0 to 1; all 1 where they are equal."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else torch.ones_like(values)
