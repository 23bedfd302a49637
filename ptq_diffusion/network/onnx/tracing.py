"""From modules to ONNX models, by torch's exporter."""

import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import onnx
import torch
from torch import Tensor, nn

from ptq_diffusion.model import Condition
from ptq_diffusion.network.onnx.graph_network import GraphNetwork
from ptq_diffusion.network.onnx.step_values import pairs_rows
from ptq_diffusion.network.quantized import QuantizedDenoiser

STATE, TIME, OUTPUT, FEATURES = "x", "t", "q", "features"
"""The names of a traced network's inputs and outputs; a condition's tensors and a step's numbers have their own."""
ROWS = 2
"""Rows, or pairs of them, of the batch that a network is traced with; their number stays open."""
BATCH = torch.export.Dim("rows", max=63)
"""The number of rows. Upsampling of diffusers makes a copy from 64 rows on, which a graph has no need of."""
PAIRS = 2 * torch.export.Dim("pairs", max=31)
"""The number of rows that are pairs of guidance."""


def traced_network(
    quantized: QuantizedDenoiser, i: int, values: Mapping[str, Tensor], condition: Condition | None, opset: int
) -> onnx.ModelProto:
    """The graph of q and the features, whose inputs are the state, the time, the condition and the step's numbers.

    Args:
        quantized: the network, whose guidance is left out.
        i: a step of the structure.
        values: its numbers, see `step_values`.
        condition: of at least two samples, for its shapes; None where the network reads none.
        opset: the version of ONNX's operators.

    Raises:
        ValueError: the network has parts that cannot be traced.
    """
    # Two pairs, not one, as the exporter takes a dimension of 1 for fixed.
    batch, count = (PAIRS, 2 * ROWS) if pairs_rows(values) else (BATCH, ROWS)
    x_t = torch.randn(count, *quantized.shape, generator=torch.Generator().manual_seed(0))
    rows = {} if condition is None else condition.rows(torch.arange(count) % ROWS).tensors()
    example = {"x_t": x_t, "t": torch.tensor(0.0), "condition": rows, "values": dict(values)}
    shapes = {"x_t": {0: batch}, "t": None, "condition": {name: {0: batch} for name in rows}} | {
        "values": dict.fromkeys(values)
    }
    network = GraphNetwork(quantized, i)
    model = traced(network, example, shapes, [STATE, TIME, *rows, *values], [OUTPUT, FEATURES], opset)
    _require_open(model, [STATE, *rows], count)
    return model


def traced_module(
    module: nn.Module, example: Mapping[str, Tensor | tuple[Tensor, ...]], names: Sequence[str], output: str, opset: int
) -> onnx.ModelProto:
    """The graph of a module of tensors whose first dimension is the number of rows, which stays open.

    Args:
        module: from the tensors of `example` to one output.
        example: its arguments, tensors of at least two rows or several of them.
        names: of the inputs, in the order of the arguments.
        output: the name of the output.
        opset: the version of ONNX's operators.

    Raises:
        ValueError: the module has parts that cannot be traced.
    """
    several = {name: tuple({0: BATCH} for _ in value) for name, value in example.items() if isinstance(value, tuple)}
    shapes = {name: {0: BATCH} for name in example} | several
    return traced(module, example, shapes, names, [output], opset)


def traced(
    module: nn.Module,
    example: Mapping[str, object],
    shapes: Mapping[str, object],
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
) -> onnx.ModelProto:
    """The graph of a module.

    Args:
        module: what is traced.
        example: its arguments.
        shapes: which of their dimensions stay open, of the same nesting.
        inputs: the names of the graph's inputs, in the order of the arguments' tensors.
        outputs: the names of the graph's outputs.
        opset: the version of ONNX's operators.

    Raises:
        ValueError: the module has parts that cannot be traced.
    """
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                kwargs=dict(example),
                dynamic_shapes=dict(shapes),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    # torch raises nearly every type of error at what it cannot trace.
    except Exception as error:
        raise ValueError(
            f"expected a network that torch can write as ONNX of opset {opset}, got one that it cannot "
            f"({_first_cause(error)}); draw its images with goal=samples_corrected"
        ) from error
    return _bare(program)


def _first_cause(error: BaseException) -> str:
    """The error that led to the others, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _require_open(model: onnx.ModelProto, names: Collection[str], count: int) -> None:
    """Refuse a graph that takes as many rows as it was traced with.

    Raises:
        ValueError: one of these inputs has a number of rows.
    """
    fixed = [
        value.name
        for value in model.graph.input
        if value.name in names and not value.type.tensor_type.shape.dim[0].dim_param
    ]
    if fixed:
        raise ValueError(
            f"expected a network that takes any number of rows, got one whose graph takes {count} of {fixed[0]} alone; "
            "draw its images with goal=samples_corrected"
        )


def _bare(program: torch.onnx.ONNXProgram | None) -> onnx.ModelProto:
    """The model without the notes on where each of its nodes came from, which are most of its bytes."""
    assert program is not None, "the exporter of graphs gives a program"
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Within this context the exporter says nothing of what it leaves out, deprecates and fails at."""
    level, ignored = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(ignored), redirect_stderr(ignored):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
