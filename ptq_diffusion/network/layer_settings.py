"""Settings of one layer of a quantized network by step: input grids, weight copies, gains and offsets."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptq_diffusion.network.differences import by_difference, numbers_of_difference
from ptq_diffusion.network.rescaling import InputGrid, Rescaling
from ptq_diffusion.numeric.grid import FLOAT_BITS, Grid
from ptq_diffusion.quantizer import WHOLE, Form, Numbers

ROWS = {"bits": torch.int16, "scale": torch.float32, "zero_point": torch.int32, "copy": torch.int16}
"""The settings that every layer has a number of at every step, and their types."""
FIELDS = (*ROWS, "symmetric", "gain", "offset", "form", "equalisation", "shift", "difference")
"""All arguments of settings, which are their attributes too."""


class LayerSettings(nn.Module):
    """The settings of one layer that may differ from step to step, a row for each of S steps; one row serves all steps.

    An operand of attention's products has settings too: its grid is that of an input, and it has no weight to choose.

    Buffers: `bits`, `scale`, `zero_point` (S,) of the grid of the input, (S, G) where its form is another, `copy` (S,),
    which of the weight's copies is used, and, once a layer is rescaled, `gain` and `offset`, (S, O), of its output
    channels, `shift`, (S, I) or (S, I, 1, 1), of its input channels, and `difference`, (S,), of pairs of its rows. It
    is never changed: other settings are other objects.

    Args:
        bits: of the input, (S,) int16; 32 leaves it float.
        scale: (S,) or (S, G) float32.
        zero_point: (S,) or (S, G) int32.
        copy: the index of the weight's copy, (S,) int16.
        symmetric: whether the grids of the input are symmetric.
        gain: (S, O) float32, or None for 1.
        offset: (S, O) float32, or None for 0.
        form: the arithmetic of the input's quantizer.
        equalisation: factors s of the input's channels, which broadcast against it: the grid meets x / s, and stands
            for s times its numbers. None is 1.
        shift: numbers m of the input's channels at every step, which broadcast against it behind their dimension of
            steps: the grid meets x / s - m, and stands for m beside its numbers. None is 0.
        difference: (S,) float32, the scale of the grid that the differences of pairs of guidance have at a step, see
            `by_difference`; at other steps 0. None puts every row on the grid of the input.
    """

    bits: Tensor
    scale: Tensor
    zero_point: Tensor
    copy: Tensor
    gain: Tensor | None
    offset: Tensor | None
    equalisation: Tensor | None
    shift: Tensor | None
    difference: Tensor | None

    def __init__(
        self,
        bits: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        copy: Tensor,
        symmetric: bool,
        gain: Tensor | None = None,
        offset: Tensor | None = None,
        form: Form = WHOLE,
        equalisation: Tensor | None = None,
        shift: Tensor | None = None,
        difference: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("equalisation", equalisation)
        self.register_buffer("shift", shift)
        self.register_buffer("difference", difference)
        buffers = {"bits": bits, "scale": scale, "zero_point": zero_point, "copy": copy, "gain": gain, "offset": offset}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        self.symmetric, self.form = symmetric, form
        self._grids = [None if b == FLOAT_BITS else Grid(b, symmetric) for b in bits.tolist()]
        rows = zip(self._grids, scale.unbind(), zero_point.unbind(), strict=True)
        self._numbers = [Numbers.of(s, z, grid) if grid and form == WHOLE else None for grid, s, z in rows]
        self._copies: list[int] = copy.tolist()
        # A row that changes nothing costs nothing: the weight's values are then those of its own scales.
        self._plain = [True] * len(bits) if gain is None or offset is None else _identities(gain, offset)
        scales = torch.zeros(len(bits)) if difference is None else difference.cpu()
        self._differences = [
            numbers_of_difference(scale, grid) if grid and scale > 0 else None
            for scale, grid in zip(scales, self._grids, strict=True)
        ]
        self._central = [True] * len(bits) if shift is None else (shift.flatten(1) == 0).all(1).tolist()

    def __len__(self) -> int:
        return len(self._copies)

    def row(self, i: int) -> int:
        """The row of step i.

        Raises:
            ValueError: there is none.
        """
        if len(self) == 1:
            return 0
        if not 0 <= i < len(self):
            raise ValueError(f"expected a step of a table of {len(self)}, for which the network has settings, got {i}")
        return i

    def forward(self, x: Tensor, i: int, paired: bool = False) -> Tensor:
        """The layer's input on its grid at step i, the shape of x.

        Args:
            x: the input.
            i: the step.
            paired: whether the rows of x are pairs of guidance, those of the null condition first.

        Raises:
            ValueError: they are not, and differences of pairs have a grid at this step.
        """
        row = self.row(i)
        grid = self._grids[row]
        if grid is None:
            return x
        numbers = self.difference_numbers(i)
        if numbers is None:
            return self.restored(self._around_shift(self.equalised(x), i, grid)).to(x.dtype)
        require_pairs(x, i, paired)
        x_hat = by_difference(self.equalised(x), lambda rows: self._around_shift(rows, i, grid), numbers)
        return self.restored(x_hat).to(x.dtype)

    def _around_shift(self, equalised: Tensor, i: int, grid: Grid) -> Tensor:
        """The values of the grid around m that are nearest to x / s."""
        shift, x_hat = self.shift_at(i), self.on_grid(self.less_shift(equalised, i), self.row(i), grid)
        return x_hat if shift is None else x_hat + shift

    def on_grid(self, met: Tensor, row: int, grid: Grid) -> Tensor:
        """The values of a grid for what meets it, x / s - m."""
        if (numbers := self._numbers[row]) is not None:
            return numbers.fake_quantized(met)
        return self.form.fake_quantized(met, grid, self.scale[row].reshape(-1), self.zero_point[row].reshape(-1))

    def shifted(self, x: Tensor, i: int) -> Tensor:
        """x / s - m, which meets the grid at step i, as float32; x itself where there are neither factors nor m."""
        return self.less_shift(self.equalised(x), i)

    def less_shift(self, equalised: Tensor, i: int) -> Tensor:
        """x / s - m of x / s at step i; x / s itself where there is no m."""
        shift = self.shift_at(i)
        return equalised if shift is None else equalised.float() - shift

    def shift_at(self, i: int) -> Tensor | None:
        """m at step i, (I,) or (I, 1, 1); None where it is 0 or the input float."""
        row = self.row(i)
        if self._central[row] or self.shift is None or self._grids[row] is None:
            return None
        return self.shift[row]

    def equalised(self, x: Tensor) -> Tensor:
        """x / s as float32; x itself where there are no factors."""
        return x if self.equalisation is None else x.float() * (1 / self.equalisation)

    def restored(self, x_hat: Tensor) -> Tensor:
        """s x_hat, the input that numbers of the grid stand for."""
        return x_hat if self.equalisation is None else x_hat * self.equalisation

    def difference_numbers(self, i: int) -> Numbers | None:
        """The numbers of the grid of differences of pairs at step i; None where every row is on the input's grid."""
        return self._differences[self.row(i)]

    def numbers(self, i: int) -> Numbers | None:
        """The numbers of the one static grid of the input at step i; None where it is float or of another form."""
        return self._numbers[self.row(i)]

    def grid(self, i: int) -> Grid | None:
        """The grid of the input at step i; None where it is float."""
        return self._grids[self.row(i)]

    @property
    def groups(self) -> int:
        """The number of grids of the input."""
        return 1 if self.scale.ndim == 1 else self.scale.shape[1]

    def weight_copy(self, i: int) -> int:
        """The index of the weight's copy that is used at step i."""
        return self._copies[self.row(i)]

    def channels(self, i: int) -> tuple[Tensor, Tensor] | None:
        """Gain and offset of the output channels at step i, (O,); None where they change nothing."""
        row = self.row(i)
        if self._plain[row] or self.gain is None or self.offset is None:
            return None
        return self.gain[row], self.offset[row]

    def at(self, i: int) -> "LayerSettings":
        """The settings of step i alone, for every step."""
        row = self.row(i)
        tables = {name: self.fields()[name] for name in (*ROWS, "gain", "offset", "shift", "difference")}
        return self._with(**{name: None if table is None else table[row : row + 1] for name, table in tables.items()})

    def rescaled(self, rescalings: Sequence[Rescaling | None]) -> "LayerSettings":
        """These settings with the rescalings of every step, of which None leaves a step as it is.

        Raises:
            ValueError: another number of steps than the settings have.
        """
        count = len(rescalings)
        if len(self) not in (1, count):
            raise ValueError(f"expected rescalings of {len(self)} steps, which the settings have, got {count}")
        rows = {name: rows_of(getattr(self, name), count).clone() for name in ROWS}
        channels = next(len(rescaling.gain) for rescaling in rescalings if rescaling is not None)
        gain = self.scale.new_ones(1, channels) if self.gain is None else self.gain
        offset = self.scale.new_zeros(1, channels) if self.offset is None else self.offset
        gain, offset = rows_of(gain, count).clone(), rows_of(offset, count).clone()
        for i, rescaling in enumerate(rescalings):
            if rescaling is not None:
                gain[i], offset[i] = rescaling.gain, rescaling.offset
                if grid := rescaling.input_grid:
                    rows["scale"][i], rows["zero_point"][i] = grid.scale[0], grid.zero_point[0]
        grids = [None if rescaling is None else rescaling.input_grid for rescaling in rescalings]
        return self._with(
            **rows, gain=gain, offset=offset, shift=self._shifts(grids), difference=self._difference_scales(grids)
        )

    def _shifts(self, grids: Sequence[InputGrid | None]) -> Tensor | None:
        """The shifts of every step: those of grids, and what the settings have at steps that are given none."""
        shifts = [grid.shift for grid in grids if grid is not None and grid.shift is not None]
        if self.shift is None and not shifts:
            return None
        before = self.scale.new_zeros(1, *shifts[0].shape) if self.shift is None else self.shift
        rows = rows_of(before, len(grids)).clone()
        for i, grid in enumerate(grids):
            if grid is not None:
                rows[i] = 0 if grid.shift is None else grid.shift
        return rows

    def _difference_scales(self, grids: Sequence[InputGrid | None]) -> Tensor | None:
        """The scales of differences at every step: those of grids, and what the settings have at steps without one."""
        scales = [None if grid is None else grid.difference for grid in grids]
        if self.difference is None and all(scale is None for scale in scales):
            return None
        before = self.scale.new_zeros(1) if self.difference is None else self.difference
        rows = rows_of(before, len(grids)).clone()
        for i, (grid, scale) in enumerate(zip(grids, scales, strict=True)):
            if grid is not None:
                rows[i] = 0 if scale is None else scale[0]
        return rows

    def with_equalisation(self, equalisation: Tensor | None) -> "LayerSettings":
        """These settings with factors of the input's channels in place of those that they have."""
        return self._with(equalisation=equalisation)

    def with_scale(self, scale: Tensor) -> "LayerSettings":
        """These settings with other scales of the input's grids, (S,) or (S, G) float32."""
        return self._with(scale=scale.to(self.scale.device))

    def fields(self) -> dict[str, Any]:
        """All that the settings were made of, by the names of the arguments."""
        return {name: getattr(self, name) for name in FIELDS}

    def _with(self, **changes: Tensor | None) -> "LayerSettings":
        return LayerSettings(**(self.fields() | changes))


def require_pairs(x: Tensor, i: int, paired: bool) -> None:
    """Refuse single rows where the differences of pairs of guidance have a grid.

    Args:
        x: the input of a layer.
        i: the step.
        paired: whether its rows are pairs.

    Raises:
        ValueError: they are not.
    """
    if not paired or len(x) % 2:
        raise ValueError(
            f"expected rows of pairs of guidance, whose differences have a grid at step {i}, got single rows; "
            "sample with guidance, or fit a correction without differences, such as correction=rescaled_matched"
        )


def rows_of(table: Tensor, count: int) -> Tensor:
    """A table of one row or as many as asked, (1, ...) or (count, ...), as one of (count, ...)."""
    return table.expand(count, *table.shape[1:])


def _identities(gain: Tensor, offset: Tensor) -> list[bool]:
    return ((gain == 1).all(1) & (offset == 0).all(1)).tolist()
