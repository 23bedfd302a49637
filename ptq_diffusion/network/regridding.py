"""Quantized inputs put on grids chosen from their own values."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor

from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.network.rescaling import InputGrid
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.quantizer import NO_SHIFT, WHOLE, RangeSearch, Shift


@dataclass(frozen=True)
class Differences:
    """A rule for the differences of pairs of guidance.

    Args:
        range_search: chooses the interval that their grid covers.
        combined: guidance, from rows to images.
        rows: of pairs, two for each image; what has another number of them, computed once for all, has no pairs.
    """

    range_search: RangeSearch
    combined: Callable[[Tensor], Tensor]
    rows: int

    def added(self, found: InputGrid, x: Tensor, grid: Grid) -> InputGrid:
        """The grid of x with a scale of differences, where it pays."""
        return found.with_difference(x, grid, self.range_search, self.combined) if len(x) == self.rows else found


@contextmanager
def regridding(
    layers: Mapping[str, QuantizedLayer],
    range_search: RangeSearch,
    i: int,
    grids: dict[str, InputGrid],
    shift: Shift = NO_SHIFT,
    differences: Differences | None = None,
) -> Iterator[None]:
    """Within this context every quantized input is put on a grid chosen from its own values and kept in `grids`.

    Args:
        layers: by name; those with a float input at the step are left out, and those whose grids are several or are
            taken at run time, which one grid would make coarser.
        range_search: chooses the interval that a grid covers.
        i: the step.
        grids: receives the grids by name.
        shift: chooses what is subtracted from the channels of an input.
        differences: of rows that are pairs; None puts every row on the grid itself.
    """

    def regrid(name: str, grid: Grid, x: Tensor) -> Tensor:
        settings = layers[name].settings
        equalised = settings.equalised(x)
        found = _grid_of_input(layers[name], equalised, grid, range_search, shift, i)
        grids[name] = differences.added(found, equalised, grid) if differences else found
        return settings.restored(grids[name].fake_quantized(equalised, grid)).to(x.dtype)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            if (grid := layer.settings.grid(i)) is not None and layer.settings.form == WHOLE:
                hook = layer.settings.register_forward_hook(
                    lambda _, inputs, __, name=name, grid=grid: regrid(name, grid, inputs[0])
                )
                hooks.enter_context(hook)
        yield


def _grid_of_input(
    layer: QuantizedLayer, x: Tensor, grid: Grid, range_search: RangeSearch, shift: Shift, i: int
) -> InputGrid:
    """The grid of x - m; where m has fractions of a scale, it is that of the grid without them, and is sought again."""
    m = shift_of_input(layer, x, shift)
    found = InputGrid.of(x, grid, range_search, m)
    shifted = shift.shifts_bordered or not layer.bordered
    fractions = shift.fractions(i, x.shape[layer.channels]) if shifted else None
    if fractions is None or _is_one_input(x):
        return found
    apart = _by_channel(layer, x, fractions.float().to(x.device)) * found.scale.to(x.device)
    return InputGrid.of(x, grid, range_search, apart if m is None else m + apart)


def shift_of_input(layer: QuantizedLayer, x: Tensor, shift: Shift) -> Tensor | None:
    """The shift m of a layer's input x, (B, ...), without fractions, which broadcasts against it; None for none.

    A border of zeros is no part of x that could be shifted. An input that is the same in every image, such as a time
    embedding, has no need of it: the offset gives back all that its grid takes, and a grid as narrow as that would fit
    no other time.
    """
    if not shift.shifts or layer.bordered or _is_one_input(x):
        return None
    return _by_channel(layer, x, shift.of(x.float().movedim(layer.channels, -1).flatten(0, -2)))


def _is_one_input(x: Tensor) -> bool:
    """Whether every image has the same."""
    return bool((x == x[:1]).all())


def _by_channel(layer: QuantizedLayer, x: Tensor, numbers: Tensor) -> Tensor:
    """Numbers of channels, (I,), in the shape that broadcasts against x."""
    behind = x.ndim - 1 - layer.channels if layer.channels > 0 else 0
    return numbers.view(-1, *[1] * behind)
