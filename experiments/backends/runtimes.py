"""Forwards of a denoiser by torch, ONNX Runtime and OpenVINO, side by side.

    OMP_NUM_THREADS=1 python -m experiments.backends.runtimes NAME THREADS BATCHES [VARIANT ...]

All take turns in one process, as in `measure`; of the variants that are named, `fp32` must be one.
"""

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import nncf
import numpy as np
import onnxruntime
import openvino
import torch
from onnxruntime import quantization
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from experiments.backends.case import Case, case
from experiments.backends.measure import VARIANTS, Forward, timings, versions
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.model import Condition, Denoiser, Output
from ptq_diffusion.network.onnx.finish import Finish
from ptq_diffusion.network.onnx.tracing import traced_module
from ptq_diffusion.network.onnx.writing import GraphOptions, write_graphs

CALIBRATION = 8
"""Batches of random states that other quantizers see; speed does not depend on how good ranges are."""
OPSET = 21
Inputs = Mapping[str, np.ndarray]


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
    """The forward of a graph by ONNX Runtime, on torch's number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    runner = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    read = {value.name: told[value.name] for value in runner.get_inputs()}
    return lambda: runner.run(None, read)[0]


def of_openvino(graph: Path, told: Inputs, precision: str) -> Forward:
    """The forward of a graph by OpenVINO, compiled for the shapes of these inputs, on torch's number of threads."""
    core = openvino.Core()
    model = core.read_model(graph)
    for value in model.inputs:
        # Not `reshape`, which would compute the weights that DequantizeLinear gives and leave no integers.
        value.node.set_partial_shape(openvino.PartialShape(list(told[value.any_name].shape)))
    model.validate_nodes_and_infer_types()
    threads = torch.get_num_threads()
    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
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


def variants(graphs: Graphs) -> dict[str, Callable[[Case], Forward]]:
    """Those of torch and those of runtimes by name, the float network first and last."""

    def of(build: Callable[[Graphs, Inputs], Forward]) -> Callable[[Case], Forward]:
        return lambda one: build(graphs, inputs(one))

    again = "fp32, again"
    by_torch = {name: make for name, make in VARIANTS.items() if name != again}
    return by_torch | {name: of(build) for name, build in RUNTIMES.items()} | {again: VARIANTS[again]}


def differences(one: Case, made: Mapping[str, Callable[[Case], Forward]]) -> Table:
    """The norm of every variant's difference from the simulation over that of the simulation."""
    table = Table("", "from simulation", title=f"{one.name}, batch {len(one.x_t)}")
    simulation = _numbers(VARIANTS["ours, simulated"](one)())
    for name, make in made.items():
        difference = np.linalg.norm(_numbers(make(one)()) - simulation) / np.linalg.norm(simulation)
        table.add_row(name, f"{difference:.3f}")
    return table


def _numbers(answer: object) -> np.ndarray:
    m = answer.m.float().numpy() if isinstance(answer, Output) else answer
    return np.asarray(m)


@torch.inference_mode()
def main() -> None:
    """Print times of all variants, and how far from the simulation each is."""
    network, threads, batches, *chosen = sys.argv[1:]
    keep_freed_memory()
    torch.set_num_threads(int(threads))
    torch._inductor.config.freezing = True
    console = Console(width=160)
    console.print(versions(), highlight=False)
    with TemporaryDirectory() as folder:
        whole = case(network, 1)
        made = variants(Graphs(whole, Path(folder)))
        made = {name: make for name, make in made.items() if not chosen or name in chosen}
        console.print(timings(network, map(int, batches.split(",")), made))
        console.print(differences(whole.of_batch(4), made))


if __name__ == "__main__":
    main()
