"""The numbers of a quantized network at one step, as the inputs of its graph: integers, scales, zero points, biases."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ptq_diffusion.network.equalising import against_weight, summed_by_output
from ptq_diffusion.network.integers import FloatWeight, QuantizedWeight, StoredWeight
from ptq_diffusion.network.layer import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.network.onnx.requirements import require_input, require_scales
from ptq_diffusion.network.quantized import QuantizedDenoiser
from ptq_diffusion.numeric.packing import unpack

LAYERS, WEIGHTS = (QuantizedConv2d, QuantizedLinear), (QuantizedWeight, FloatWeight)
"""The kinds of layers and of weights that have nodes; a subclass may compute otherwise."""
FULL = 8
"""The bits at which QuantizeLinear saturates by itself."""

Structure = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
"""The names, types and shapes of a step's numbers: steps that share it share a traced graph."""


def step_values(quantized: QuantizedDenoiser, i: int) -> dict[str, Tensor]:
    """The numbers of a step by `layer.number`, gains in the weights' scales and offsets in the biases.

    `input_scale`, () float32, and `input_zero_point`, () uint8 or int8, of an input that is quantized, with `input_low`
    and `input_high`, the ends of its grid, below 8 bits; `weight`, int8 or uint8, with `weight_scale`, (O,) float32,
    and `weight_zero_point`, (O,) uint8, of an affine grid, or `weight` in float32; `bias`, (O,) float32. An equalised
    layer has `input_factors`, float32, 1 / s as it multiplies the input, and its weight is that of x / s. A shifted one
    has `input_shift`, float32, m as it is subtracted from that, and the product of its weight and m in its bias. Where
    rows of guidance are quantized by their difference, `difference_scale`, `difference_zero_point`, int8, and
    `difference_low` and `difference_high` are of its grid as those of the input are.

    Args:
        quantized: the network, with a correction's rescalings.
        i: the step.

    Raises:
        TypeError: a layer, a weight or settings that have no nodes.
        ValueError: a weight whose scales are neither of its output channels nor of the whole, or a shifted input with
            a border of zeros.
    """
    values: dict[str, Tensor] = {}
    for name, layer in quantized.layers().items():
        values |= layer_values(name, layer, i)
    for name, attention in quantized.attentions().items():
        for letter, settings in attention.settings().items():
            parts = _input_values(f"{name}.{letter}", settings, i)
            values |= {f"{name}.{letter}.{part}": number for part, number in parts.items()}
    return values


def layer_values(name: str, layer: QuantizedLayer, i: int) -> dict[str, Tensor]:
    """The numbers of a layer at a step, see `step_values`."""
    parts = _input_values(name, layer.settings, i) | _weight_values(name, layer, i)
    return {f"{name}.{part}": number for part, number in parts.items()}


def pairs_rows(values: Mapping[str, Tensor]) -> bool:
    """Whether a step quantizes differences between the rows of guidance, so that its graph takes pairs of them."""
    return any(name.endswith(".difference_scale") for name in values)


def structure(values: Mapping[str, Tensor]) -> Structure:
    """The structure that graphs of these numbers have in common."""
    return tuple((name, number.dtype, tuple(number.shape)) for name, number in values.items())


def _input_values(name: str, settings: LayerSettings, i: int) -> dict[str, Tensor]:
    grid, row = settings.grid(i), settings.row(i)
    factors = {} if settings.equalisation is None else {"input_factors": 1 / settings.equalisation}
    if grid is None:
        return factors
    if (shift := settings.shift_at(i)) is not None:
        factors["input_shift"] = shift.clone()
    if type(settings) is not LayerSettings:
        raise TypeError(
            f"expected static ranges of a whole input at {name}, which QuantizeLinear has, got "
            f"{type(settings).__name__}; choose another quantizer.activation"
        )
    require_input(name, settings.form)
    scale, zero_point = settings.scale[row], settings.zero_point[row]
    dtype = torch.int8 if grid.symmetric else torch.uint8
    values = factors | {"input_scale": scale.clone(), "input_zero_point": zero_point.to(dtype)}
    if grid.bits < FULL:
        values |= {"input_low": scale * (grid.low - zero_point), "input_high": scale * (grid.high - zero_point)}
    return values | _difference_values(settings, i, grid.bits)


def _difference_values(settings: LayerSettings, i: int, bits: int) -> dict[str, Tensor]:
    """The numbers of the grid of differences between the rows of guidance; empty where there is none."""
    numbers = settings.difference_numbers(i)
    if numbers is None or settings.difference is None:
        return {}
    scale = settings.difference[settings.row(i)]
    values = {"difference_scale": scale.clone(), "difference_zero_point": torch.zeros((), dtype=torch.int8)}
    if bits < FULL:
        values |= {"difference_low": scale * numbers.low, "difference_high": scale * numbers.high}
    return values


def _weight_values(name: str, layer: QuantizedLayer, i: int) -> dict[str, Tensor]:
    if type(layer) not in LAYERS:
        raise TypeError(
            f"expected a convolution or a linear layer at {name}, got {type(layer).__name__}, of which no graph is "
            "written; leave it as it was quantized"
        )
    weight = layer.weights[layer.settings.weight_copy(i)]
    if type(weight) not in WEIGHTS:
        raise TypeError(
            f"expected integers with a scale for each output channel at {name}, which DequantizeLinear has, got "
            f"{type(weight).__name__}; choose another quantizer.weight"
        )
    assert isinstance(weight, StoredWeight)
    channels = layer.settings.channels(i)
    gain, offset = (None, None) if channels is None else channels
    bias = layer.bias
    if gain is not None and offset is not None:
        bias = offset if bias is None else bias * gain + offset
    if (shift := layer.settings.shift_at(i)) is not None:
        _require_no_border(name, layer)
        constant = summed_by_output(of_equalised_input(layer, weight.values(gain)), shift).float()
        bias = constant if bias is None else bias + constant
    values = _integer_values(name, weight, gain) if isinstance(weight, QuantizedWeight) else {}
    values = values or {"weight": of_equalised_input(layer, weight.values(gain))}
    return values if bias is None else values | {"bias": bias}


def _require_no_border(name: str, layer: QuantizedLayer) -> None:
    if layer.bordered:
        raise ValueError(
            f"expected a shift of inputs of layers without padding, whose product with the weight is a bias, got one "
            f"of {name}; leave it out of the correction"
        )


def of_equalised_input(layer: QuantizedLayer, weight: Tensor) -> Tensor:
    """The weight that gives with x / s what this one gives with x; itself where the layer is not equalised."""
    factors = layer.settings.equalisation
    return weight if factors is None else weight * against_weight(factors, weight.shape)


def _integer_values(name: str, weight: QuantizedWeight, gain: Tensor | None) -> dict[str, Tensor]:
    outputs = weight.shape[0]
    require_scales(name, weight.scale.shape, outputs)
    dtype = torch.int8 if weight.grid.symmetric else torch.uint8
    integers = (unpack(weight.packed, weight.bits, weight.shape) + weight.grid.low).to(dtype)
    scale = (weight.scale if gain is None else weight.scale * gain).expand(outputs).contiguous()
    values = {"weight": integers, "weight_scale": scale}
    if weight.grid.symmetric:
        return values
    return values | {"weight_zero_point": weight.zero_point.expand(outputs).to(dtype)}
