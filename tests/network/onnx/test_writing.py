"""Graphs of networks of several families give the simulation's outputs in ONNX Runtime."""

import numpy as np
import onnx
import pytest
import torch

from ptq_diffusion.network.embedding import embeddings
from ptq_diffusion.network.onnx.extra import require_libraries, require_opset
from ptq_diffusion.network.onnx.finish import Finish
from ptq_diffusion.network.onnx.session import run_model
from ptq_diffusion.network.onnx.writing import WEIGHTS, GraphOptions, write_graphs
from tests.model.networks import condition_of, denoiser_of, states_of
from tests.network.test_families import STEPS, quantized_family


def end(_):
    return Finish({}, None)


def written(name, options, folder, steps):
    denoiser = denoiser_of(name)
    condition = condition_of(denoiser)
    quantized = quantized_family(denoiser, condition, table_bits=4)
    return quantized, condition, write_graphs(quantized, steps, end, condition, options, folder)


@pytest.mark.parametrize(("name", "fold_time"), [("classes", False), ("dit", True)])
def test_a_graph_gives_the_outputs_of_the_simulation(name, fold_time, tmp_path):
    """W4A8 with attention's products, weights as INT4, tables of classes as INT8."""
    step = STEPS[0]
    quantized, condition, files = written(name, GraphOptions(21, fold_time, True), tmp_path, [step, step])
    assert files == ["step_0000.onnx"] * 2
    graph = onnx.load(tmp_path / files[0])
    kinds = {tensor.data_type for tensor in graph.graph.initializer if tensor.name.endswith(".weight")}
    assert onnx.TensorProto.INT4 in kinds
    tables = {tuple(table.weight.shape) for table in embeddings(denoiser_of(name).network).values()}
    integers = {tuple(part.dims) for part in graph.graph.initializer if part.data_type == onnx.TensorProto.INT8}
    assert tables and tables <= integers
    x_t = torch.cat([states_of(denoiser_of(name))] * 2)
    told = {name: torch.cat([tensor] * 2) for name, tensor in condition.tensors().items()}
    given = {"x": x_t, "t": torch.tensor(step.t)} | told
    assert {value.name for value in graph.graph.input} == given.keys() - ({"t"} if fold_time else set())
    read = {value.name: given[value.name].numpy() for value in graph.graph.input}
    (m,) = run_model(tmp_path / files[0], read)
    expected = quantized.predict(x_t, step, type(condition)(**told)).m.numpy()
    # Of a few hundred numbers, one or two may be rounded to the other neighbour of their grid.
    difference = np.linalg.norm(m - expected) / np.linalg.norm(expected)
    assert difference < 0.02, difference
    assert {path.name for path in tmp_path.iterdir()} == {"step_0000.onnx", WEIGHTS}


def test_the_opset_and_the_extra_are_required(monkeypatch):
    for opset, words in ((20, "got 20, which is too old"), (24, "got 24, which is newer than torch writes")):
        with pytest.raises(ValueError, match=f"{words}.*set onnx.opset=21"):
            require_opset(opset)
    require_libraries()
    monkeypatch.setattr("ptq_diffusion.network.onnx.extra.find_spec", lambda library: None if library == "onnx" else 1)
    with pytest.raises(ModuleNotFoundError, match=r"without onnx: pip install '\.\[onnx\]'"):
        require_libraries()
