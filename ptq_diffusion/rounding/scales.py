"""The contract of activation scales: how the steps between the numbers of a static grid are found."""

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.network.step_settings import StepSettings
from ptq_diffusion.quantizer import Static

Scales = Mapping[str, Tensor]
"""Scales of inputs at every step, each (S,) or (S, G), by operand; rows of one serve all steps."""


class ActivationScales(ABC):
    """A rule for the scales of activations; zero points stay those of the range search.

    Class attributes:
        learns: whether they are learned once weights are rounded.
    """

    learns: ClassVar[bool]


class SearchedScales(ActivationScales):
    """Scales as the range search has them."""

    learns = False


def is_learnable(settings: LayerSettings) -> bool:
    """Whether an operand has static grids at any step; float ones, dynamic ones and log2 have no scale to learn."""
    return isinstance(settings.form, Static) and any(settings.grid(i) is not None for i in range(len(settings)))


def with_scales(settings: StepSettings, scales: Scales) -> StepSettings:
    """The settings of a network with other scales of some operands."""
    return StepSettings({**settings, **{name: settings[name].with_scale(scale) for name, scale in scales.items()}})
