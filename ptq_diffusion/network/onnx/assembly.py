"""From a traced graph to that of one step: numbers and time as constants, a repair of the output behind."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ptq_diffusion.network.onnx.constants import SharedConstants
from ptq_diffusion.network.onnx.session import run_model
from ptq_diffusion.network.onnx.tracing import FEATURES, OUTPUT, STATE, TIME

REPAIRED = "m"
"""The name of the output of a finished graph."""
SCALED = "x_scaled"
"""The name of the state as the network sees it, where a sampler scales it."""


def assembled(
    network: ModelProto,
    constants: Iterable[TensorProto],
    repair: ModelProto | None,
    input_scale: float,
    shared: SharedConstants,
) -> ModelProto:
    """The graph of m~ at a step, without what nothing reads.

    Args:
        network: traced, of q and the features.
        constants: in place of inputs, or of what nodes compute.
        repair: traced, from `q`, `x` and `features` to `m`; None leaves q.
        input_scale: the factor of the state before the network sees it.
        shared: the file of the folder's constants.
    """
    known: dict[str, TensorProto] = {tensor.name: tensor for tensor in (*network.graph.initializer, *constants)}
    nodes = list(network.graph.node)
    if input_scale != 1:
        known["input_scale"] = numpy_helper.from_array(np.array(input_scale, np.float32), "input_scale")
        nodes = [helper.make_node("Mul", [STATE, "input_scale"], [SCALED]), *renamed(nodes, {STATE: SCALED})]
    if repair is None:
        nodes = renamed(nodes, {OUTPUT: REPAIRED})
    else:
        nodes += _behind(repair, known)
    nodes = _needed(nodes, [REPAIRED], known)
    read = {name for node in nodes for name in node.input}
    inputs = [value for value in network.graph.input if value.name in read - known.keys()]
    output = [helper.make_tensor_value_info(REPAIRED, TensorProto.FLOAT, _dimensions(network, OUTPUT))]
    initializers = [shared.share(tensor) for name, tensor in known.items() if name in read]
    graph = helper.make_graph(nodes, "denoiser", inputs, output, initializers)
    imports = {opset.domain: opset for opset in (*network.opset_import, *(repair.opset_import if repair else ()))}
    return helper.make_model(graph, opset_imports=list(imports.values()), ir_version=network.ir_version)


def _behind(repair: ModelProto, constants: dict[str, TensorProto]) -> list[NodeProto]:
    """The nodes of a repair with names of their own; its constants are added."""
    graph = repair.graph
    passed = {STATE, OUTPUT, FEATURES, REPAIRED, ""}
    names = {name for node in graph.node for name in (*node.input, *node.output)} - passed
    own = {name: f"repair/{name}" for name in names}
    for tensor in graph.initializer:
        named = TensorProto()
        named.CopyFrom(tensor)
        named.name = own.get(tensor.name, tensor.name)
        constants[named.name] = named
    nodes = renamed(graph.node, own)
    for node in nodes:
        node.name = f"repair/{node.name}"
    return nodes


def renamed(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> list[NodeProto]:
    """Copies of nodes in which values have other names."""
    copies = []
    for node in nodes:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = [names.get(name, name) for name in node.input]
        copied.output[:] = [names.get(name, name) for name in node.output]
        copies.append(copied)
    return copies


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str], known: Collection[str]) -> list[NodeProto]:
    """The nodes, in their order, that outputs are computed by where some values are known."""
    wanted, needed = set(outputs), list[NodeProto]()
    for node in reversed(nodes):
        if not wanted.isdisjoint(set(node.output) - set(known)):
            wanted |= set(node.input)
            needed.append(node)
    return needed[::-1]


def _dimensions(model: ModelProto, output: str) -> list[int | str]:
    (value,) = (value for value in model.graph.output if value.name == output)
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


class TimeConstants:
    """Values that a network computes of the time alone, constants at a step.

    Args:
        network: traced.
        values: the names of a step's numbers.
    """

    def __init__(self, network: ModelProto, values: Collection[str]) -> None:
        graph = network.graph
        given = {*values, *(tensor.name for tensor in graph.initializer), ""}
        fixed, times = set(given), {TIME}
        inside, read_outside = list[NodeProto](), {value.name for value in graph.output}
        for node in graph.node:
            read = set(node.input)
            if not read <= fixed | times:
                read_outside |= read
                continue
            # Of the numbers alone, or of the time too.
            (times if read & times else fixed).update(node.output)
            inside.append(node)
        self.names = sorted(times & read_outside - {TIME})
        nodes = _needed(inside, self.names, given)
        read = {name for node in nodes for name in node.input}
        inputs = [value for value in graph.input if value.name in read]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.names]
        initializers = [tensor for tensor in graph.initializer if tensor.name in read]
        cut = helper.make_graph(nodes, "time", inputs, outputs, initializers)
        self._inputs = [value.name for value in inputs]
        self._model = helper.make_model(cut, opset_imports=network.opset_import, ir_version=network.ir_version)

    def at(self, t: float, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The constants of a step by name.

        Args:
            t: the time.
            values: the step's numbers.
        """
        known = {TIME: np.asarray(t, np.float32)} | dict(values)
        if not self.names:
            return {}
        outputs = run_model(self._model, {name: known[name] for name in self._inputs})
        return dict(zip(self.names, outputs, strict=True))
