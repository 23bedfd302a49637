"""Writes the graphs of a quantized network, one for every step or for steps that share it, into a folder."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ptq_diffusion.model import Condition
from ptq_diffusion.network.integers import QuantizedWeight
from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.network.onnx.assembly import REPAIRED, TimeConstants, assembled
from ptq_diffusion.network.onnx.constants import SharedConstants, constant
from ptq_diffusion.network.onnx.finish import Finish
from ptq_diffusion.network.onnx.graph_network import Row
from ptq_diffusion.network.onnx.step_values import Structure, step_values, structure
from ptq_diffusion.network.onnx.tracing import FEATURES, OUTPUT, ROWS, STATE, TIME, traced_module, traced_network
from ptq_diffusion.network.quantized import QuantizedDenoiser
from ptq_diffusion.sampler import Step

WEIGHTS = "weights.bin"
"""The file of the constants that graphs share."""


@dataclass(frozen=True)
class GraphOptions:
    """Options of graphs.

    Args:
        opset: the version of ONNX's operators.
        fold_time: whether the time is a constant of a graph for each step; else it is an input.
        int4: whether weights of 4 bits and less are stored as INT4; else in 8 bits.
    """

    opset: int
    fold_time: bool
    int4: bool


def write_graphs(
    quantized: QuantizedDenoiser,
    steps: Sequence[Step],
    finish: Callable[[int], Finish],
    condition: Condition | None,
    options: GraphOptions,
    out: Path,
) -> list[str]:
    """Write the graphs of all steps; the name of every step's file. Steps of equal graphs share one.

    Args:
        quantized: the network, with a correction's rescalings, asked about rows or pairs of them, not guided.
        steps: of its table.
        finish: of every step.
        condition: of at least two samples, for its shapes; None where the network reads none.
        options: of the graphs.
        out: an existing folder.

    Raises:
        TypeError: see `step_values`.
        ValueError: see `step_values`, or a part of the network cannot be traced.
    """
    writer = _Writer(quantized, condition, options, SharedConstants(out / WEIGHTS))
    names: dict[str, str] = {}
    files = []
    for step in steps:
        content = writer.graph(step, finish(step.i)).SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()
        if digest not in names:
            names[digest] = f"step_{step.i:04d}.onnx"
            (out / names[digest]).write_bytes(content)
        files.append(names[digest])
    return files


class _Writer:
    """Makes the graphs of steps, and traces each structure of the network once.

    Args:
        quantized: the network.
        condition: for its shapes.
        options: of the graphs.
        shared: the folder's constants.
    """

    def __init__(
        self, quantized: QuantizedDenoiser, condition: Condition | None, options: GraphOptions, shared: SharedConstants
    ) -> None:
        self._quantized, self._condition, self._options, self._shared = quantized, condition, options, shared
        self._traced: dict[Structure, tuple[onnx.ModelProto, TimeConstants]] = {}

    def graph(self, step: Step, finish: Finish) -> onnx.ModelProto:
        """The graph of a step."""
        values = _finished(step_values(self._quantized, step.i), finish.values)
        network, of_time = self._network(step.i, values)
        numbers = {name: value.numpy() for name, value in values.items()}
        constants = [constant(name, array, self._bits(name, step.i, array)) for name, array in numbers.items()]
        if self._options.fold_time:
            at_time = of_time.at(step.t, numbers) | {TIME: np.asarray(step.t, np.float32)}
            constants += [constant(name, array, 8) for name, array in at_time.items()]
        return assembled(network, constants, self._repair(finish.repair), step.input_scale, self._shared)

    def _network(self, i: int, values: Mapping[str, Tensor]) -> tuple[onnx.ModelProto, TimeConstants]:
        key = structure(values)
        if key not in self._traced:
            network = traced_network(self._quantized, i, values, self._condition, self._options.opset)
            self._traced[key] = network, TimeConstants(network, values.keys())
        return self._traced[key]

    def _repair(self, repair: nn.Module | None) -> onnx.ModelProto | None:
        if repair is None:
            return None
        return traced_module(repair, self._example, [OUTPUT, STATE, FEATURES], REPAIRED, self._options.opset)

    @cached_property
    def _example(self) -> dict[str, Tensor]:
        """q, states and features of two rows."""
        x_t = torch.zeros(ROWS, *self._quantized.shape)
        told = None if self._condition is None else self._condition.rows(slice(ROWS))
        q, features, _ = self._quantized.predict(x_t, Row(0, torch.tensor(1.0)), told)
        assert features is not None, "a quantized network gives the input of its output layer"
        return {"q": q, "x_t": x_t, "features": features}

    @cached_property
    def _layers(self) -> Mapping[str, QuantizedLayer]:
        """Every quantized layer, which would be looked for at every constant of every step."""
        return self._quantized.layers()

    def _bits(self, name: str, i: int, array: np.ndarray) -> int:
        """The bits that integers of a weight, or their zero points, are stored in."""
        owner, _, part = name.rpartition(".")
        layers = self._layers
        if not self._options.int4 or owner not in layers or not re.fullmatch("weight(_zero_point)?", part):
            return 8
        weight = layers[owner].weights[layers[owner].settings.weight_copy(i)]
        packed = isinstance(weight, QuantizedWeight) and weight.bits <= 4 and array.dtype != np.float32
        return 4 if packed else 8


def _finished(values: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of a step with those of the output layer's weight and bias in place of its own."""
    replaced = tuple(f"{name.rpartition('.')[0]}.{part}" for name in others for part in ("weight", "bias"))
    return {name: value for name, value in values.items() if not name.startswith(replaced)} | dict(others)
