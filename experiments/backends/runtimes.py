"""Forwards of float and quantized networks by ONNX Runtime and OpenVINO, on one thread.

    OMP_NUM_THREADS=1 python -m experiments.backends.runtimes [NETWORK [ROUNDS]]

Each variant takes turns with fp32 eager in one process; a ratio is of CPU seconds, turn by turn.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from onnxruntime import quantization
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from experiments.backends.case import Case, case
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.network.onnx.finish import Finish
from ptq_diffusion.network.onnx.session import session
from ptq_diffusion.network.onnx.tracing import traced_module
from ptq_diffusion.network.onnx.writing import GraphOptions, write_graphs

BATCHES = (1, 4, 64)
CALIBRATION = 8
"""Batches of random states that other quantizers see; speed does not depend on how good ranges are."""
OPSET = 21
Inputs = Mapping[str, np.ndarray]
Forward = Callable[[], object]


class FloatGraph(nn.Module):
    """m of a float network, from states, times and a condition.

    Args:
        model: without guidance.
        names: of the condition's tensors.
    """

    def __init__(self, model: Denoiser, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, x: Tensor, t: Tensor, condition: tuple[Tensor, ...] = ()) -> Tensor:
        """m, (B, C, H, W), of states (B, C, H, W) at times (B,)."""
        told = Condition(**dict(zip(self.names, condition, strict=True))) if condition else None
        step: Any = SimpleNamespace(i=0, t=t[0], input_scale=1.0)
        return self.model.predict(x, step, told).m


class Graphs:
    """The graphs of a case in a folder, each made when it is first asked for; they take any batch.

    Args:
        one: the case.
        folder: an existing one.
    """

    def __init__(self, one: Case, folder: Path) -> None:
        self._case, self._folder = one.of_batch(2), folder

    @cached_property
    def float_graph(self) -> Path:
        """The float network as torch exports it."""
        told = {} if self._case.condition is None else self._case.condition.tensors()
        example = {"x": self._case.x_t, "t": torch.full((2,), float(self._case.step.t))}
        names = [*example, *told]
        module = FloatGraph(self._case.model, tuple(told))
        arguments = example | ({"condition": tuple(told.values())} if told else {})
        graph = traced_module(module, arguments, names, "m", OPSET)
        return self._written("float.onnx", graph.SerializeToString())

    @cached_property
    def quantized_by_onnxruntime(self) -> Path:
        """ONNX Runtime's static quantization: U8S8 QDQ, a scale for each output channel."""
        states, prepared, target = self._states, self._folder / "prepared.onnx", self._folder / "int8.onnx"

        class Reader(quantization.CalibrationDataReader):
            def get_next(self) -> dict[str, np.ndarray] | None:
                return states.pop() if states else None

        quantization.shape_inference.quant_pre_process(self.float_graph, prepared, skip_symbolic_shape=True)
        types = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
        quantization.quantize_static(prepared, target, Reader(), per_channel=True, **types)
        return target

    @cached_property
    def quantized_by_nncf(self) -> Path:
        """NNCF's integers."""
        source, target = openvino.Core().read_model(self.float_graph), self._folder / "nncf.xml"
        preset = nncf.QuantizationPreset.MIXED
        openvino.save_model(nncf.quantize(source, nncf.Dataset(self._states), preset=preset), target, False)
        return target

    @cached_property
    def ours(self) -> Path:
        """The graph that goal=onnx writes of the step."""
        options, end = GraphOptions(OPSET, fold_time=True, int4=False), Finish({}, None)
        one = self._case
        files = write_graphs(one.quantized, [one.step], lambda _: end, one.condition, options, self._folder)
        return self._folder / files[0]

    @property
    def _states(self) -> list[dict[str, np.ndarray]]:
        """Inputs with random states, which other quantizers see."""
        shape = self._case.x_t.shape
        states = (np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in range(CALIBRATION))
        return [dict(inputs(self._case)) | {"x": state} for state in states]

    def _written(self, name: str, content: bytes) -> Path:
        (self._folder / name).write_bytes(content)
        return self._folder / name


def inputs(one: Case) -> Inputs:
    """The inputs of graphs, of which ours do not read the time."""
    told = {} if one.condition is None else one.condition.tensors()
    times = np.full(len(one.x_t), one.step.t, np.float32)
    return {"x": one.x_t.numpy(), "t": times} | {name: tensor.numpy() for name, tensor in told.items()}


def of_onnxruntime(graph: Path, told: Inputs) -> Forward:
    """The forward of a graph by ONNX Runtime."""
    runner = session(graph)
    read = {value.name: told[value.name] for value in runner.get_inputs()}
    return lambda: runner.run(None, read)[0]


def of_openvino(graph: Path, told: Inputs, precision: str) -> Forward:
    """The forward of a graph by OpenVINO, compiled for the shapes of these inputs."""
    core = openvino.Core()
    model = core.read_model(graph)
    for value in model.inputs:
        # Not `reshape`, which would compute the weights that DequantizeLinear gives and leave no integers.
        value.node.set_partial_shape(openvino.PartialShape(list(told[value.any_name].shape)))
    model.validate_nodes_and_infer_types()
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    read = {value.any_name: told[value.any_name] for value in model.inputs}
    return lambda: request.infer(read, share_inputs=True, share_outputs=True)[0]


RUNTIMES: dict[str, Callable[[Graphs, Inputs], Forward]] = {
    "ONNX Runtime, fp32": lambda graphs, told: of_onnxruntime(graphs.float_graph, told),
    "ONNX Runtime, int8, its own": lambda graphs, told: of_onnxruntime(graphs.quantized_by_onnxruntime, told),
    "OpenVINO, fp32": lambda graphs, told: of_openvino(graphs.float_graph, told, "f32"),
    "OpenVINO, bf16": lambda graphs, told: of_openvino(graphs.float_graph, told, "bf16"),
    "OpenVINO, int8 of NNCF, fp32": lambda graphs, told: of_openvino(graphs.quantized_by_nncf, told, "f32"),
    "OpenVINO, int8 of NNCF, bf16": lambda graphs, told: of_openvino(graphs.quantized_by_nncf, told, "bf16"),
    "ours, ONNX Runtime": lambda graphs, told: of_onnxruntime(graphs.ours, told),
    "ours, OpenVINO, int8, fp32": lambda graphs, told: of_openvino(graphs.ours, told, "f32"),
    "ours, OpenVINO, int8, bf16": lambda graphs, told: of_openvino(graphs.ours, told, "bf16"),
}
"""From the graphs of a case and the inputs of a batch to the forward."""


def _variant(name: str) -> Callable[[Case], Forward]:
    def build(one: Case) -> Forward:
        with TemporaryDirectory() as folder:
            return RUNTIMES[name](Graphs(one, Path(folder)), inputs(one))

    return build


VARIANTS: dict[str, Callable[[Case], Forward]] = {name: _variant(name) for name in RUNTIMES}
"""From a case to its forward."""


def eager(one: Case) -> Forward:
    """The float network, by torch."""
    return lambda: one.model.predict(one.x_t, one.step, one.condition).m


def simulated(one: Case) -> Forward:
    """The quantized network, simulated by torch."""
    return lambda: one.quantized.predict(one.x_t, one.step, one.condition).m


def ratios(one: Case, forwards: Mapping[str, Forward], rounds: int) -> Iterator[tuple[str, float, float, float]]:
    """Name, milliseconds of CPU, speed to the first, and difference from the simulation relative to it."""
    spent: dict[str, list[float]] = {name: [] for name in forwards}
    for turn in range(rounds + 1):
        for name in list(forwards)[:: 1 if turn % 2 else -1]:
            since = time.process_time()
            forwards[name]()
            spent[name].append(time.process_time() - since)
    first, simulation = spent[next(iter(forwards))], np.asarray(simulated(one)())
    for name, seconds in spent.items():
        speeds = [base / own for base, own in zip(first[1:], seconds[1:], strict=True)]
        difference = np.linalg.norm(np.asarray(forwards[name]()) - simulation) / np.linalg.norm(simulation)
        yield name, 1e3 * statistics.median(seconds[1:]), statistics.median(speeds), float(difference)


@torch.inference_mode()
def main() -> None:
    """Print a table for each batch."""
    network, rounds = sys.argv[1] if len(sys.argv) > 1 else "cifar10_ddpm", int(sys.argv[2]) if len(sys.argv) > 2 else 9
    keep_freed_memory()
    torch.set_num_threads(1)
    console, whole = Console(width=120), case(network, 1)
    libraries = ("torch", "onnxruntime", "openvino", "nncf")
    console.print(", ".join(f"{library} {version(library)}" for library in libraries), highlight=False)
    with TemporaryDirectory() as folder:
        graphs = Graphs(whole, Path(folder))
        for batch in BATCHES:
            one = whole.of_batch(batch)
            forwards = {"torch, fp32 eager": eager(one), "torch, ours simulated": simulated(one)}
            forwards |= {name: build(graphs, inputs(one)) for name, build in RUNTIMES.items()}
            table = Table("variant", "CPU ms", "times as fast", "from simulation", title=f"{network}, batch {batch}")
            for name, milliseconds, speed, difference in ratios(one, forwards, rounds * max(1, 16 // batch)):
                table.add_row(name, f"{milliseconds:.2f}", f"{speed:.2f}", f"{difference:.1e}")
            console.print(table)


if __name__ == "__main__":
    main()
