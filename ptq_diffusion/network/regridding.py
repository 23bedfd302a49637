"""Quantized inputs put on grids chosen from their own values."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor

from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.network.rescaling import InputGrid
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import NO_SHIFT, WHOLE, RangeSearch, Shift


@contextmanager
def regridding(
    layers: Mapping[str, QuantizedLayer],
    range_search: RangeSearch,
    i: int,
    grids: dict[str, InputGrid],
    shift: Shift = NO_SHIFT,
) -> Iterator[None]:
    """Within this context every quantized input is put on a grid chosen from its own values and kept in `grids`.

    Args:
        layers: by name; those with a float input at the step are left out, and those whose grids are several or are
            taken at run time, which one grid would make coarser.
        range_search: chooses the interval that a grid covers.
        i: the step.
        grids: receives the grids by name.
        shift: chooses what is subtracted from the channels of an input.
    """

    def regrid(name: str, grid: Grid, x: Tensor) -> Tensor:
        settings = layers[name].settings
        equalised = settings.equalised(x)
        taken_off = shift_of_input(layers[name], equalised, shift, i, grid.bits)
        grids[name] = InputGrid.of(equalised, grid, range_search, taken_off)
        return settings.restored(grids[name].fake_quantized(equalised, grid)).to(x.dtype)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            if (grid := layer.settings.grid(i)) is not None and layer.settings.form == WHOLE:
                hook = layer.settings.register_forward_hook(
                    lambda _, inputs, __, name=name, grid=grid: regrid(name, grid, inputs[0])
                )
                hooks.enter_context(hook)
        yield


def shift_of_input(layer: QuantizedLayer, x: Tensor, shift: Shift, i: int, bits: int) -> Tensor | None:
    """The shift of a layer's input x, (B, ...), at step i, which broadcasts against it; None where there is none.

    A border of zeros is no part of x that could be shifted, see `Shift.bordered`. An input that is the same in every
    image, such as a time embedding, has no need of it: the offset gives back all that its grid takes, and a grid as
    narrow as that would fit no other time.
    """
    if not shift.shifts or (layer.bordered and not shift.bordered) or bool((x == x[:1]).all()):
        return None
    rows = x.float().movedim(layer.channels, -1).flatten(0, -2)
    behind = x.ndim - 1 - layer.channels if layer.channels > 0 else 0
    return shift.of(rows, i, bits).view(-1, *[1] * behind)
