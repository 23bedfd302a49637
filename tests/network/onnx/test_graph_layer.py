"""A layer of a graph, run by ONNX Runtime, equals the simulated layer given the same input."""

import pytest
import torch
from torch import nn

from ptq_diffusion.network import CurrentStep, FloatWeight, InputGrid, LayerSettings, QuantizedWeight, Rescaling
from ptq_diffusion.network.equalising import against_weight
from ptq_diffusion.network.layer import quantized_layer
from ptq_diffusion.network.onnx.graph_layer import GraphInputs, GraphLayer, GraphSettings
from ptq_diffusion.network.onnx.session import run_model
from ptq_diffusion.network.onnx.step_values import layer_values, pairs_rows, structure
from ptq_diffusion.network.onnx.tracing import BATCH, PAIRS, traced
from ptq_diffusion.quantizer import AffineQuantizer, MinMax, PerChannel, PerTensor

CONV, LINEAR = nn.Conv2d(3, 4, 3, padding=1, stride=2, groups=1), nn.Linear(6, 5)
BARE = nn.Conv2d(3, 4, 3)
LAYERS = {
    "per channel": (CONV, (8, True, True), (8, False), True),
    "rescaled": (LINEAR, (8, True, True), (8, False), True),
    "4 bits": (LINEAR, (4, True, True), (4, False), False),
    "symmetric input": (CONV, (8, True, False), (8, True), False),
    "6 bits, symmetric": (CONV, (6, True, True), (6, True), False),
    "affine weight": (LINEAR, (4, False, True), (8, False), False),
    "float weight": (CONV, None, (8, False), True),
    "float input": (LINEAR, (8, True, True), None, False),
    "equalised": (CONV, (4, True, True), (8, False), True, (0.5, 1.0, 4.0)),
    "equalised, float weight": (LINEAR, None, (6, False), False, (2.0, 1.0, 0.25, 1.0, 8.0, 1.0)),
    "shifted": (LINEAR, (4, True, True), (4, False), True, None, (-3.0, 0.5, 0.0, 8.0, 1.0, 2.0)),
    "shifted, equalised": (BARE, (8, False, True), (8, True), True, (0.5, 1.0, 4.0), (-1.0, 2.0, 0.25)),
    "shifted, float weight": (BARE, None, (6, False), True, None, (-1.0, 2.0, 0.25)),
}
"""Layer; bits, symmetric, per channel of its weight; bits, symmetric of its input; whether it is rescaled; factors and
shift of its input's channels."""


def settings_of(operand, rescaled, outputs, equalisation, shift):
    bits, symmetric = operand or (32, False)
    zero_point = 0 if symmetric or operand is None else 2 ** (bits - 1) - 3
    rows = {"bits": torch.int16, "scale": torch.float32, "zero_point": torch.int32, "copy": torch.int16}
    numbers = {"bits": bits, "scale": 0.037, "zero_point": zero_point, "copy": 0}
    settings = LayerSettings(
        **{row: torch.tensor([numbers[row]], dtype=rows[row]) for row in rows},
        symmetric=symmetric,
        equalisation=equalisation,
    )
    if not rescaled:
        return settings
    grid = None if shift is None else InputGrid(settings.scale, settings.zero_point, shift)
    return settings.rescaled([Rescaling(torch.linspace(0.5, 1.5, outputs), torch.linspace(-1, 1, outputs), grid)])


def stored(weight, kind, equalisation):
    if kind is None:
        return FloatWeight(weight)
    bits, symmetric, per_channel = kind
    quantizer = AffineQuantizer(bits, symmetric, PerChannel() if per_channel else PerTensor(), MinMax(), 64)
    if equalisation is not None:
        quantizer.equalised(against_weight(equalisation, weight.shape))
    quantizer.observe(weight)
    quantizer.freeze()
    return QuantizedWeight.of(weight, quantizer)


def layer_of(layer, weight, operand, rescaled, factors=None, shift=None):
    equalisation, shift = (
        None if numbers is None else torch.tensor(numbers).view(-1, *[1] * (layer.weight.dim() - 2))
        for numbers in (factors, shift)
    )
    copies, bias = [stored(layer.weight.detach(), weight, equalisation)], layer.bias.detach()
    settings = settings_of(operand, rescaled, len(bias), equalisation, shift)
    return quantized_layer(layer, copies, bias, settings, CurrentStep())


def away_from_ties(shape, scale):
    """Numbers within 0.3 steps of a grid's, some of them beyond its ends."""
    draw = torch.Generator().manual_seed(0)
    return scale * (torch.randint(-200, 300, shape, generator=draw) + 0.6 * torch.rand(shape, generator=draw) - 0.3)


class Side(nn.Module):
    """Layers beside each other, each with an input of its own."""

    def __init__(self, layers):
        super().__init__()
        self.inputs = GraphInputs()
        settings = {name: GraphSettings(name, layer.settings, self.inputs) for name, layer in layers.items()}
        self.layers = nn.ModuleList(
            GraphLayer(name, layer, settings[name], self.inputs) for name, layer in layers.items()
        )

    def forward(self, x, values):
        self.inputs.tensors = values
        return tuple(layer(one) for layer, one in zip(self.layers, x, strict=True))


def test_every_kind_of_layer_equals_the_simulated_one_given_the_same_input():
    torch.manual_seed(0)
    layers = {name: layer_of(*kind) for name, kind in LAYERS.items()}
    shapes = [(2, 3, 6, 6) if kind[0] is not LINEAR else (2, 7, 6) for kind in LAYERS.values()]
    x = tuple(
        layer.settings.restored(shift_of(layer) + away_from_ties(shape, 0.037))
        for shape, layer in zip(shapes, layers.values(), strict=True)
    )
    values = {key: value for name, layer in layers.items() for key, value in layer_values(name, layer, 0).items()}
    names = [f"x {name}" for name in layers]
    dynamic = {"x": tuple({0: BATCH} for _ in x), "values": dict.fromkeys(values)}
    model = traced(Side(layers), {"x": x, "values": values}, dynamic, [*names, *values], list(layers), 21)
    told = {name: one.numpy() for name, one in zip(names, x, strict=True)}
    read = {value.name for value in model.graph.input}
    outputs = run_model(model, {name: one for name, one in (told | as_arrays(values)).items() if name in read})
    for one, output, (name, layer) in zip(x, outputs, layers.items(), strict=True):
        expected = layer(one)
        torch.testing.assert_close(
            torch.from_numpy(output), expected, rtol=1e-6, atol=2e-6 * float(expected.abs().max())
        )
        assert bool(layer.settings.grid(0) is None) != any(key.startswith(f"{name}.input") for key in values)


def test_pairs_of_any_number_equal_simulated_ones():
    """Layers whose rows of guidance are quantized by their difference; the graph is traced of two pairs."""
    torch.manual_seed(0)
    kinds = {name: LAYERS[name] for name in ("rescaled", "symmetric input", "shifted", "shifted, equalised")}
    layers = {name: layer_of(*kind) for name, kind in kinds.items()}
    for layer in layers.values():
        settings, outputs = layer.settings, len(layer.bias)
        grid = InputGrid(settings.scale, settings.zero_point, settings.shift_at(0), torch.tensor([0.01]))
        layer.settings = settings.rescaled([Rescaling(torch.ones(outputs), torch.zeros(outputs), grid)])
        layer.current.paired = True
    values = {key: value for name, layer in layers.items() for key, value in layer_values(name, layer, 0).items()}
    assert pairs_rows(values)
    names = [f"x {name}" for name in layers]

    def inputs(pairs):
        for layer, kind in zip(layers.values(), kinds.values(), strict=True):
            shape = (pairs, 3, 6, 6) if kind[0] is not LINEAR else (pairs, 7, 6)
            conditional = layer.settings.restored(shift_of(layer) + away_from_ties(shape, 0.037))
            yield torch.cat([conditional + layer.settings.restored(away_from_ties(shape, 0.01).flip(0)), conditional])

    dynamic = {"x": tuple({0: PAIRS} for _ in layers), "values": dict.fromkeys(values)}
    example = {"x": tuple(inputs(2)), "values": values}
    model = traced(Side(layers), example, dynamic, [*names, *values], list(layers), 21)
    read = {value.name for value in model.graph.input}
    for pairs in (1, 3):
        x = tuple(inputs(pairs))
        told = {name: one.numpy() for name, one in zip(names, x, strict=True)} | as_arrays(values)
        outputs = run_model(model, {name: one for name, one in told.items() if name in read})
        for one, output, layer in zip(x, outputs, layers.values(), strict=True):
            expected = layer(one)
            tolerance = 2e-6 * float(expected.abs().max())
            torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-6, atol=tolerance)


def shift_of(layer):
    shift = layer.settings.shift_at(0)
    return 0 if shift is None else shift


def as_arrays(values):
    return {name: value.numpy() for name, value in values.items()}


def test_steps_share_a_graph_where_only_numbers_differ():
    eight, other = (layer_of(CONV, (8, True, True), (8, False), rescaled) for rescaled in (False, True))
    four = layer_of(CONV, (8, True, True), (4, False), False)
    of = [structure(layer_values("layer", layer, 0)) for layer in (eight, other, four)]
    assert of[0] == of[1] != of[2]


class Another(QuantizedWeight):
    """A kind that no graph knows."""


def test_what_has_no_nodes_is_refused_by_name():
    layer = layer_of(CONV, (8, True, True), (8, False), False)
    weight = layer.weights[0]
    own = weight.grid, weight.shape, weight.granularity
    layer.weights[0] = Another(weight.packed, weight.scale, weight.zero_point, *own)
    with pytest.raises(
        TypeError, match="at conv_out, which DequantizeLinear has, got Another; choose another quantizer"
    ):
        layer_values("conv_out", layer, 0)
    layer.weights[0] = QuantizedWeight(weight.packed, torch.ones(2), torch.zeros(2), *own)
    with pytest.raises(ValueError, match=r"each of the 4 output channels of conv_out or one, .* scales of \(2,\)"):
        layer_values("conv_out", layer, 0)
    shifted = layer_of(CONV, (8, True, True), (8, False), True, None, (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match=r"layers without padding, .* got one of conv_out; leave it out"):
        layer_values("conv_out", shifted, 0)
    other = type("OtherConv2d", (type(layer),), {})
    layer.__class__ = other
    with pytest.raises(TypeError, match="at conv_out, got OtherConv2d"):
        layer_values("conv_out", layer, 0)
