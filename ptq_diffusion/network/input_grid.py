"""Scales and zero points of layers' inputs of their own, such as every step may have."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.quantizer import AffineQuantizer, Numbers, RangeSearch

BINS = 1024
"""Of the histogram of a layer's input."""


@dataclass(frozen=True)
class InputGrid:
    """The grid of a layer's input, of the bits that its quantizer has.

    Args:
        scale: (1,) float32.
        zero_point: (1,) int32.
    """

    scale: Tensor
    zero_point: Tensor

    @classmethod
    def of(cls, x: Tensor, quantizer: AffineQuantizer, range_search: RangeSearch) -> "InputGrid":
        """What the quantizer would be if it had seen this input alone, under another range search."""
        grid = quantizer.grid
        own = AffineQuantizer(grid.bits, grid.symmetric, False, range_search, BINS)
        own.observe(x)
        own.freeze()
        return cls(own.scale.cpu(), own.zero_point.cpu())

    def numbers(self, quantizer: AffineQuantizer) -> Numbers:
        """What the quantizer computes with on this grid."""
        return Numbers.of(self.scale, self.zero_point, quantizer.grid)

    def lerp(self, other: "InputGrid", weight: float) -> "InputGrid":
        """From this one at weight 0 to the other at 1; zero stays on the grid."""
        zero_point = torch.lerp(self.zero_point.float(), other.zero_point.float(), weight).round().int()
        return InputGrid(torch.lerp(self.scale, other.scale, weight), zero_point)


@contextmanager
def regridding(
    layers: Mapping[str, QuantizedLayer], range_search: RangeSearch, found: dict[str, InputGrid]
) -> Iterator[None]:
    """Within this context every quantized input gets a grid for what it is at its first call, kept in `found`.

    Args:
        layers: by name; those with a float input are left out.
        range_search: chooses the interval that a grid covers.
        found: receives the grids by name.
    """
    with ExitStack() as stack:
        for name, layer in layers.items():
            if isinstance(quantizer := layer.activation, AffineQuantizer):
                stack.callback(setattr, quantizer, "instead", quantizer.instead)

                def choose(own: AffineQuantizer, inputs: tuple[Tensor], name: str = name) -> None:
                    if name not in found:
                        found[name] = InputGrid.of(inputs[0], own, range_search)
                        own.instead = found[name].numbers(own)

                stack.enter_context(quantizer.register_forward_pre_hook(choose))
        yield
