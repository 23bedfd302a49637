"""A quantized network as a module that torch traces: all its numbers are arguments."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ptq_diffusion.model import Condition, Denoiser, DiffusersDenoiser
from ptq_diffusion.model.family.dit import DiT
from ptq_diffusion.model.family.unet_2d import UNet2D
from ptq_diffusion.model.family.unet_2d_condition import UNet2DCondition
from ptq_diffusion.network.attention import QuantizedAttention
from ptq_diffusion.network.embedding import quantized_embeddings
from ptq_diffusion.network.insertion import with_layers
from ptq_diffusion.network.layer import CurrentStep
from ptq_diffusion.network.onnx.graph_embedding import GraphEmbedding
from ptq_diffusion.network.onnx.graph_layer import GraphInputs, GraphLayer, GraphSettings
from ptq_diffusion.network.onnx.graph_norm import GraphGroupNorm
from ptq_diffusion.network.quantized import QuantizedDenoiser

EMBEDDING = "time_proj"
"""The name that diffusers gives to a module that embeds times."""
BROADCAST = (UNet2D, UNet2DCondition, DiT)
"""Families whose networks add one row of the time's embedding to every row of a batch."""


@dataclass(frozen=True)
class Row:
    """The step that is traced.

    Args:
        i: the row of the table.
        t: the time, a tensor () in place of a number.
        input_scale: 1, as states come scaled.
    """

    i: int
    t: Any
    input_scale: float = 1.0


class OneTime(nn.Module):
    """An embedding of times that embeds the graph's time alone, since all rows of a batch are at it: (B,) to (1, E).

    So what the network computes of the time does not depend on B, and is a constant where the time is one.

    Args:
        embedding: of every time.
        inputs: of the graph.
    """

    def __init__(self, embedding: nn.Module, inputs: GraphInputs) -> None:
        super().__init__()
        self.embedding, self.inputs = embedding, inputs

    def forward(self, times: Tensor) -> Tensor:  # noqa: ARG002
        return self.embedding(self.inputs.time[None])


class GraphNetwork(nn.Module):
    """q and the features of a quantized network without guidance, from its state, time, condition and numbers.

    Args:
        quantized: the network; it is not changed.
        i: a step whose structure is traced.
    """

    def __init__(self, quantized: QuantizedDenoiser, i: int) -> None:
        super().__init__()
        self.i, self.inputs = i, GraphInputs()
        self.denoiser = _graph_denoiser(quantized.unguided(), i, self.inputs)

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """q, (B, C, H, W), and the features, (B, F, H/p, W/p).

        Args:
            x_t: states times the step's `input_scale`, (B, C, H, W).
            t: the time of all of them, () float32.
            condition: tensors of a condition, by name.
            values: see `step_values`.
        """
        self.inputs.time, self.inputs.tensors = t, values
        told = Condition(**condition) if condition else None
        m, features, _ = self.denoiser.predict(x_t, Row(self.i, t), told)
        assert features is not None, "a quantized network gives the input of its output layer"
        return m, features


def _graph_denoiser(quantized: QuantizedDenoiser, i: int, inputs: GraphInputs) -> QuantizedDenoiser:
    """The denoiser around a copy of the network whose quantized parts are nodes of a graph."""
    settings = {name: GraphSettings(name, row.at(i), inputs) for name, row in quantized.settings.items()}
    layers = {name: GraphLayer(name, layer, settings[name], inputs) for name, layer in quantized.layers().items()}
    network = with_layers(quantized.network, layers)
    current = CurrentStep()
    for name, attention in quantized.attentions().items():
        operands = {letter: settings[f"{name}.{letter}"] for letter in attention.operands}
        layer: Any = network.get_submodule(name)
        layer.set_processor(QuantizedAttention(copy.deepcopy(attention.original), operands, current))
    tables = {name: embedding.table for name, embedding in quantized_embeddings(network).items()}
    _replace(network, {name: GraphEmbedding(table) for name, table in tables.items()})
    _replace(network, {name: GraphGroupNorm(norm) for name, norm in _norms(network).items()})
    if _adds_one_row(quantized.denoiser):
        _embed_one_row(network, inputs)
    denoiser = quantized.denoiser.with_network(network)
    return QuantizedDenoiser(denoiser, quantized.sites(), quantized.attention_macs(), quantized.plan, current)


def _adds_one_row(denoiser: Denoiser) -> bool:
    return isinstance(denoiser, DiffusersDenoiser) and isinstance(denoiser.family, BROADCAST)


def _embed_one_row(network: nn.Module, inputs: GraphInputs) -> None:
    """Put `OneTime` around the embeddings of the time; the network is changed."""
    # SDXL's `add_time_proj` is of the same class, and embeds sizes.
    modules = {name: module for name, module in network.named_modules() if name.rpartition(".")[2] == EMBEDDING}
    _replace(network, {name: OneTime(module, inputs) for name, module in modules.items()})


def _norms(network: nn.Module) -> dict[str, nn.GroupNorm]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)}


def _replace(network: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of others, by their names; the network is changed."""
    for name, module in modules.items():
        network.set_submodule(name, module)
