"""Settings of a quantized network by step: one table of input grids, weight copies, gains and offsets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_diffusion.network.integers import require_scales
from ptq_diffusion.network.rescaling import Rescaling
from ptq_diffusion.numeric.grid import FLOAT_BITS, Grid
from ptq_diffusion.quantizer import WHOLE, Form, Numbers

ROWS = {"bits": torch.int16, "scale": torch.float32, "zero_point": torch.int32, "copy": torch.int16}
"""The settings that every layer has a number of at every step, and their types."""
GRIDS = ("scale", "zero_point")
"""The settings that a layer has several numbers of where its input has several grids."""
GROUPS = "groups"
"""The name of the numbers of grids."""


class LayerSettings(nn.Module):
    """The settings of one layer that may differ from step to step, a row for each of S steps; one row serves all steps.

    An operand of attention's products has settings too: its grid is that of an input, and it has no weight to choose.

    Buffers: `bits`, `scale`, `zero_point` (S,) of the grid of the input, (S, G) where its form is another, `copy` (S,),
    which of the weight's copies is used, and, once a layer is rescaled, `gain` and `offset`, (S, O), of its output
    channels. It is never changed: other settings are other objects.

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
    """

    bits: Tensor
    scale: Tensor
    zero_point: Tensor
    copy: Tensor
    gain: Tensor | None
    offset: Tensor | None
    equalisation: Tensor | None

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
    ) -> None:
        super().__init__()
        self.register_buffer("equalisation", equalisation)
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

    def forward(self, x: Tensor, i: int) -> Tensor:
        """The layer's input on its grid at step i, the shape of x."""
        row = self.row(i)
        numbers, grid = self._numbers[row], self._grids[row]
        if grid is None:
            return x
        if numbers is not None:
            return self.restored(numbers.fake_quantized(self.equalised(x))).to(x.dtype)
        parameters = self.scale[row].reshape(-1), self.zero_point[row].reshape(-1)
        return self.restored(self.form.fake_quantized(self.equalised(x), grid, *parameters)).to(x.dtype)

    def equalised(self, x: Tensor) -> Tensor:
        """x / s, which meets the grid, as float32; x itself where there are no factors."""
        return x if self.equalisation is None else x.float() * (1 / self.equalisation)

    def restored(self, x_hat: Tensor) -> Tensor:
        """s x_hat, the input that numbers of the grid stand for."""
        return x_hat if self.equalisation is None else x_hat * self.equalisation

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
        rows = {name: getattr(self, name)[row : row + 1] for name in ROWS}
        both = (self.gain, self.offset)
        gain, offset = (None if table is None else table[row : row + 1] for table in both)
        return self._like(rows, gain, offset)

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
        gain, offset = self.scale.new_ones(count, channels), self.scale.new_zeros(count, channels)
        for i, rescaling in enumerate(rescalings):
            if rescaling is not None:
                gain[i], offset[i] = rescaling.gain, rescaling.offset
                if grid := rescaling.input_grid:
                    rows["scale"][i], rows["zero_point"][i] = grid.scale[0], grid.zero_point[0]
        return self._like(rows, gain, offset)

    def with_equalisation(self, equalisation: Tensor | None) -> "LayerSettings":
        """These settings of no rescaled layer, with factors of its input's channels."""
        rows = {name: getattr(self, name) for name in ROWS}
        return LayerSettings(**rows, symmetric=self.symmetric, form=self.form, equalisation=equalisation)

    def _like(self, rows: Mapping[str, Tensor], gain: Tensor | None, offset: Tensor | None) -> "LayerSettings":
        return LayerSettings(
            **rows,
            symmetric=self.symmetric,
            gain=gain,
            offset=offset,
            form=self.form,
            equalisation=self.equalisation,
        )


def rows_of(table: Tensor, count: int) -> Tensor:
    """A table of one row or as many as asked, (1, ...) or (count, ...), as one of (count, ...)."""
    return table.expand(count, *table.shape[1:])


def _identities(gain: Tensor, offset: Tensor) -> list[bool]:
    return ((gain == 1).all(1) & (offset == 0).all(1)).tolist()


@dataclass(frozen=True)
class StepSettings(Mapping[str, LayerSettings]):
    """The settings of all layers of a network and of the quantized operands of attention's products, by name.

    Args:
        layers: in the network's order, operands behind them.
    """

    layers: Mapping[str, LayerSettings]

    def __getitem__(self, name: str) -> LayerSettings:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def at(self, i: int) -> "StepSettings":
        """The settings of step i alone, for every step."""
        return StepSettings({name: layer.at(i) for name, layer in self.layers.items()})

    def rescaled(self, rescalings: Sequence[Mapping[str, Rescaling]]) -> "StepSettings":
        """The table with rescalings of layers, by name, for every step.

        Raises:
            ValueError: another number of steps, or a layer that the network does not have or whose input has no grid to
                replace.
        """
        names = dict.fromkeys(name for row in rescalings for name in row)
        for name in names:
            self._require(name, [row.get(name) for row in rescalings])
        rescaled = {name: self.layers[name].rescaled([row.get(name) for row in rescalings]) for name in names}
        return StepSettings({**self.layers, **rescaled})

    def _require(self, name: str, rescalings: Sequence[Rescaling | None]) -> None:
        if name not in self.layers:
            raise ValueError(
                f"expected a quantized layer {name}, which the correction was fitted for, got a network without; fit "
                "it for this network"
            )
        layer = self.layers[name]
        if len(layer) not in (1, len(rescalings)):
            return  # `LayerSettings.rescaled` says which numbers of steps differ.
        for i, rescaling in enumerate(rescalings):
            if rescaling is None or rescaling.input_grid is None:
                continue
            if layer.grid(i) is None or layer.form != WHOLE:
                difference = "a float input" if layer.grid(i) is None else f"an input with {layer.form}"
                raise ValueError(
                    f"expected {name} to quantize its input to one grid, which the correction has at step {i}, got "
                    f"{difference}; fit it for this network"
                )

    def tensors(self) -> dict[str, Tensor]:
        """Every setting of all layers, (S, layers), by name; gains and offsets belong to corrections, not here.

        Where an input has several grids, `scale` and `zero_point` have a column for each, and `groups`, (layers,), says
        how many.
        """
        if not self.layers:
            return {}
        layers, count = self.layers.values(), max(len(layer) for layer in self.layers.values())
        tables = {name: [rows_of(getattr(layer, name), count).reshape(count, -1) for layer in layers] for name in ROWS}
        tensors = {name: torch.cat(columns, dim=1) for name, columns in tables.items()}
        groups = torch.tensor([layer.groups for layer in layers], dtype=torch.int32)
        return tensors if bool((groups == 1).all()) else tensors | {GROUPS: groups}

    @classmethod
    def of_tensors(
        cls, tensors: Mapping[str, Tensor], symmetric: Mapping[str, bool], forms: Mapping[str, Form]
    ) -> "StepSettings":
        """The table whose `tensors` these are.

        Args:
            tensors: by name.
            symmetric: whether the grids of a layer's input are, by layer.
            forms: the arithmetic of inputs that have more than one grid found beforehand, by layer.

        Raises:
            KeyError: a setting is missing.
            ValueError: tensors of another shape or type, or a scale that is not a positive number.
        """
        if odd := [name for name in ROWS if tensors[name].dtype != ROWS[name]]:
            raise ValueError(f"expected settings {odd[0]} of {ROWS[odd[0]]}, got {tensors[odd[0]].dtype}")
        require_scales(tensors["scale"])
        groups = tensors.get(GROUPS, torch.ones(len(symmetric), dtype=torch.int32)).tolist()
        widths = {name: groups if name in GRIDS else [1] * len(symmetric) for name in ROWS}
        shapes = {name: tuple(tensors[name].shape) for name in ROWS}
        if len(groups) != len(symmetric) or shapes != {n: (*shapes["bits"][:1], sum(widths[n])) for n in ROWS}:
            raise ValueError(
                f"expected settings of {len(symmetric)} layers at every step, got {sorted(set(shapes.values()))}"
            )
        columns = {name: tensors[name].split(widths[name], dim=1) for name in ROWS}
        return cls(
            {
                layer: LayerSettings(
                    **{name: _table(columns[name][place], name, forms.get(layer, WHOLE)) for name in ROWS},
                    symmetric=symmetric[layer],
                    form=forms.get(layer, WHOLE),
                )
                for place, layer in enumerate(symmetric)
            }
        )


def _table(columns: Tensor, name: str, form: Form) -> Tensor:
    """A setting of one layer from its columns."""
    return columns.contiguous() if name in GRIDS and form != WHOLE else columns[:, 0].contiguous()
