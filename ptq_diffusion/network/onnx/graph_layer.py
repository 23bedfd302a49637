"""Layers that a graph is traced of: their numbers come from outside, and rounding to grids is an ONNX operator."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.network.layer_settings import ROWS, LayerSettings

OPSET = 21
"""The version of QuantizeLinear and DequantizeLinear that nodes are written in, the first with 4 bits."""


class GraphInputs:
    """The time and the numbers of a step by name, which are inputs of a graph while it is traced; see `step_values`.

    Attributes:
        time: (), or a tracer in its place.
        tensors: the numbers, or tracers.
    """

    def __init__(self) -> None:
        self.time = torch.tensor(0.0)
        self.tensors: Mapping[str, Tensor] = {}

    def of(self, owner: str) -> dict[str, Tensor]:
        """The numbers of a layer or an operand, by what they are."""
        prefix = f"{owner}."
        named = (
            (name.removeprefix(prefix), tensor) for name, tensor in self.tensors.items() if name.startswith(prefix)
        )
        return {name: tensor for name, tensor in named if "." not in name}


class GraphSettings(LayerSettings):
    """Settings of one operand that quantize it by a pair of QuantizeLinear and DequantizeLinear.

    What they give of an equalised input is x_hat / s, which the weight of a graph meets, and of a shifted one that less
    m, whose product with the weight is in the bias.

    Args:
        name: of the layer or the operand.
        settings: of the step that is traced alone.
        inputs: of the graph.
    """

    def __init__(self, name: str, settings: LayerSettings, inputs: GraphInputs) -> None:
        super().__init__(**{row: getattr(settings, row) for row in ROWS}, symmetric=settings.symmetric)
        self.name, self.inputs = name, inputs

    def forward(self, x: Tensor, i: int, paired: bool = False) -> Tensor:  # noqa: ARG002
        numbers = self.inputs.of(self.name)
        x = self._equalised(x, numbers)
        if "input_shift" in numbers:
            x = x - numbers["input_shift"]
        return _on_grid(x, "input", numbers) if "input_scale" in numbers else x

    def of_difference(self, null: Tensor, conditional: Tensor) -> Tensor:
        """The difference between the rows of guidance, as the weight of a graph meets it, on its own grid."""
        numbers = self.inputs.of(self.name)
        difference = self._equalised(null, numbers) - self._equalised(conditional, numbers)
        return _on_grid(difference, "difference", numbers)

    @staticmethod
    def _equalised(x: Tensor, numbers: Mapping[str, Tensor]) -> Tensor:
        return x * numbers["input_factors"] if "input_factors" in numbers else x


def _on_grid(x: Tensor, of: str, numbers: Mapping[str, Tensor]) -> Tensor:
    """The values of a grid nearest to x; `of` says whose numbers they are, input or difference."""
    if f"{of}_low" in numbers:
        # QuantizeLinear saturates at the ends of 8 bits only.
        x = torch.clamp(x, numbers[f"{of}_low"], numbers[f"{of}_high"])
    scale, zero_point = numbers[f"{of}_scale"], numbers[f"{of}_zero_point"]
    integers = node("QuantizeLinear", [x, scale, zero_point], zero_point.dtype, x)
    return node("DequantizeLinear", [integers, scale, zero_point], torch.float32, x)


class GraphLayer(QuantizedLayer):
    """A quantized layer whose weight is dequantized by DequantizeLinear, a scale for each output channel.

    Where rows of guidance are quantized by their difference, that has an operation of its own, of two operands on
    grids, which runtimes compute in integers; its output is added to that of the row with the condition.

    Args:
        name: of the layer.
        layer: which it stands for.
        settings: of its input.
        inputs: of the graph.
    """

    def __init__(self, name: str, layer: QuantizedLayer, settings: GraphSettings, inputs: GraphInputs) -> None:
        geometry: Any = layer
        super().__init__(geometry, [], None, settings, layer.current)
        self.name, self.inputs = name, inputs
        # The method alone, so that the layer's own tensors do not become the graph's.
        self._operation = layer.operation

    def forward(self, x: Tensor) -> Tensor:
        if "difference_scale" not in self.inputs.of(self.name):
            return super().forward(x)
        assert isinstance(self.settings, GraphSettings)
        # As `chunk`, whose rounding up of an odd number of rows cannot be traced where their number stays open.
        null, conditional = x.reshape(2, x.shape[0] // 2, *x.shape[1:]).unbind(0)
        weight, bias = self.operands(self.current.i)
        base = self.compute(self.settings(conditional, self.current.i), weight, bias)
        return torch.cat([base + self.compute(self.settings.of_difference(null, conditional), weight, None), base])

    def operands(self, i: int) -> tuple[Tensor, Tensor | None]:  # noqa: ARG002
        numbers = self.inputs.of(self.name)
        weight = numbers["weight"]
        if "weight_scale" in numbers:
            grid = [numbers[part] for part in ("weight_scale", "weight_zero_point") if part in numbers]
            weight = node("DequantizeLinear", [weight, *grid], torch.float32, weight, axis=0)
        return weight, numbers.get("bias")

    def watch_input(self, see: Callable[[Tensor], object]) -> RemovableHandle:
        def see_restored(x_hat: Tensor) -> object:
            numbers = self.inputs.of(self.name)
            assert "difference_scale" not in numbers, "the output layer, which is watched, is not rescaled"
            shift, factors = numbers.get("input_shift"), numbers.get("input_factors")
            x_hat = x_hat if shift is None else x_hat + shift
            return see(x_hat if factors is None else x_hat / factors)

        return super().watch_input(see_restored)

    def operation(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._operation(x, weight, bias)


def node(operator: str, inputs: list[Tensor], dtype: torch.dtype, like: Tensor, **attributes: Any) -> Tensor:
    """The output of an ONNX operator, of the shape of another tensor."""
    return torch.onnx.ops.symbolic(operator, inputs, attributes, dtype=dtype, shape=like.shape, version=OPSET)
