"""Settings of a quantized network by step: one table of input grids, weight copies, gains and offsets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptq_diffusion.network.integers import require_scales
from ptq_diffusion.network.layer_settings import ROWS, LayerSettings, rows_of
from ptq_diffusion.network.rescaling import Rescaling
from ptq_diffusion.quantizer import WHOLE, Form

GRIDS = ("scale", "zero_point")
"""The settings that a layer has several numbers of where its input has several grids."""
GROUPS = "groups"
"""The name of the numbers of grids."""


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
