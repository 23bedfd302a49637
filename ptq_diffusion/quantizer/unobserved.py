"""Quantizers whose grids depend on nothing that was observed before."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer.granularity import Granularity
from ptq_diffusion.quantizer.quantizer import Quantizer, State


class UnobservedQuantizer(Quantizer):
    """A quantizer that observes nothing: its grids are known, or taken from the tensor itself.

    Args:
        grid: of the integers.
        granularity: the groups of numbers that have a grid each.
    """

    def __init__(self, grid: Grid, granularity: Granularity) -> None:
        super().__init__(granularity)
        self.grid = grid
        # A network stores these in the places of a static grid's.
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))

    def observe(self, x: Tensor) -> None:  # noqa: ARG002
        self.require(State.OBSERVING)

    def freeze(self) -> None:
        self.require(State.OBSERVING)
        self.state = State.FROZEN

    def observation(self) -> Mapping[str, Tensor]:
        self.require(State.OBSERVING)
        return {}

    def forward(self, x: Tensor) -> Tensor:
        self.require(State.FROZEN)
        return self.form.fake_quantized(x, self.grid, self.scale, self.zero_point)

    def differentiable(self, x: Tensor) -> Tensor:
        """x_hat as `forward` gives it, by operations that a gradient passes, grids as constants."""
        return self(x)
