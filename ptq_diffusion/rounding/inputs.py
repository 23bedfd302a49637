"""How the inputs of layers are taken that a rounding reads."""

from dataclasses import dataclass
from typing import Literal

from ptq_diffusion.rounding.step_weights import StepWeights

PathName = Literal["float", "quantized"]
"""The network whose inputs are read: the float one, or the quantized one, whose blocks before are rounded already.

Layers before in the same block are at nearest.
"""
Target = Literal["weight", "output"]
"""The aim of a rounding: that x_hat gives with the rounded weight what it gives with the float one, or what x gives."""


@dataclass(frozen=True)
class Inputs:
    """The inputs over all steps of float sampling; those that a layer quantizes are taken as it quantizes them.

    Args:
        path: the network whose inputs are read.
        target: the output that is to be met: of the float weight on the same input, or of the float network.
        offsets: whether each step has an offset of its own for every output channel, as a correction with rescaled
            layers fits one: the mean input of a step is taken out, as the offset gives back what rounding does to it.
        weights: of the steps.
        positions: how many places of a layer's output are read of each state.

    Raises:
        ValueError: fewer than one place.
    """

    path: PathName
    target: Target
    offsets: bool
    weights: StepWeights
    positions: int = 16

    def __post_init__(self) -> None:
        if self.positions < 1:
            raise ValueError(f"expected at least 1 place of each state, got {self.positions}; raise positions")
