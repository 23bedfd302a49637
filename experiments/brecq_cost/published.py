"""The published loop of block reconstruction, stated again: everything that a block is asked lies in memory.

As the releases of BRECQ (Li et al., ICLR 2021, arXiv 2102.05426) and of Q-Diffusion (Li et al., ICCV 2023, arXiv
2302.04304), whose loop PTQD builds on, have it: inputs and outputs of the block for all samples are cached in float32;
an iteration takes a random mini-batch of them, computes every weight from its undecided integers, and takes one step of
Adam on the squared error of the output, summed over channels, plus 0.01 times the sum of 1 - |2 h - 1|^b over all
weights, b going from 20 to 2 on a line behind a warm-up. Without Fisher weights, as Q-Diffusion has it, which would
cache a gradient of each output besides.
"""

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.network import QuantizedLayer
from ptq_diffusion.network.insertion import Integers
from ptq_diffusion.numeric.grid import Grid
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.rounding import Subject, UniformSteps
from ptq_diffusion.rounding.parts import Part
from ptq_diffusion.rounding.weights import WeightReconstruction

SHARPEST, SOFTEST = 20.0, 2.0
"""The first and the last exponent b of the regulariser."""
ZETA, GAMMA = 1.1, -0.1
"""The ends of the stretched sigmoid."""


class _SeenError(Exception):
    """A block has returned, and nothing behind it is wanted."""


@dataclass(frozen=True)
class Loop:
    """The numbers of the loop, by default those of the releases.

    Args:
        iterations: steps of Adam; 20,000 in the releases.
        rows: samples of a mini-batch.
        learning_rate: of Adam.
        regulariser: the factor of the regulariser.
        warmup: the share of the iterations without it.
        quantizes_inputs: whether layers quantize their inputs meanwhile; in the releases they do not.
    """

    iterations: int
    rows: int = 32
    learning_rate: float = 1e-3
    regulariser: float = 0.01
    warmup: float = 0.2
    quantizes_inputs: bool = True


class SoftLayer(nn.Module):
    """A layer that computes its weight from undecided integers, and rounds its input, at every call.

    Args:
        layer: the quantized one, for its geometry, its bias and the grid of its input.
        weight: float.
        spread: scale and zero point of every weight.
        grid: of the integers.
        quantizes_input: whether the input is put on its grid.
    """

    def __init__(
        self, layer: QuantizedLayer, weight: Tensor, spread: tuple[Tensor, Tensor], grid: Grid, quantizes_input: bool
    ) -> None:
        super().__init__()
        self.layer, self.grid, self.quantizes_input = layer, grid, quantizes_input
        self.delta, self.zero_point = spread
        self.floor = torch.floor(weight / self.delta)
        rest = weight / self.delta - self.floor
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))

    def targets(self) -> Tensor:
        """h, between 0 for the integer below and 1 for the one above."""
        return torch.clamp(torch.sigmoid(self.alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        integers = torch.clamp(self.floor + self.targets() + self.zero_point, self.grid.low, self.grid.high)
        weight = (integers - self.zero_point) * self.delta
        return self.layer.operation(self._on_grid(x), weight, self.layer.bias)

    def integers(self) -> Tensor:
        """The integers as they are decided now."""
        hard = self.floor + (self.alpha >= 0).float() + self.zero_point
        return torch.clamp(hard, self.grid.low, self.grid.high).detach().to(torch.int32)

    def _on_grid(self, x: Tensor) -> Tensor:
        grid = self.layer.settings.grid(0)
        if grid is None or not self.quantizes_input:
            return x
        scale, zero_point = self.layer.settings.scale, self.layer.settings.zero_point
        position = x / scale
        rounded = (position.round() - position).detach() + position
        return (torch.clamp(rounded + zero_point, grid.low, grid.high) - zero_point) * scale


class PublishedReconstruction(WeightReconstruction):
    """Each block by the published loop, on the same states, scales and paths as ours.

    Args:
        subject: the network.
        loop: the numbers.
    """

    def __init__(self, subject: Subject, loop: Loop) -> None:
        super().__init__(subject, UniformSteps())
        self.loop = loop

    def rounded(self, part: Part) -> Integers:
        inputs, tree, targets = self._cached(part)
        block, layers = self._soft(part)
        optimizer = torch.optim.Adam([layer.alpha for layer in layers.values()], self.loop.learning_rate)
        draw = generator("published", part.name)
        with torch.enable_grad():
            for iteration in range(self.loop.iterations):
                rows = torch.randperm(len(targets), generator=draw)[: self.loop.rows]
                some = [leaf[rows] if isinstance(leaf, Tensor) else leaf for leaf in inputs]
                positional, named = tree_unflatten(some, tree)
                optimizer.zero_grad()
                error = (_first(block(*positional, **named)) - targets[rows]).abs().pow(2.0).sum(1).mean()
                (error + self._regulariser(list(layers.values()), iteration)).backward()
                optimizer.step()
        return {(name, self.bits(name)[0]): layer.integers() for name, layer in layers.items()}

    def _regulariser(self, layers: list[SoftLayer], iteration: int) -> Tensor:
        begin = self.loop.warmup * self.loop.iterations
        if iteration < begin:
            return torch.zeros(())
        left = 1 - (iteration - begin) / (self.loop.iterations - begin)
        b = SOFTEST + (SHARPEST - SOFTEST) * left
        undecided = [(1 - ((layer.targets() - 0.5).abs() * 2).pow(b)).sum() for layer in layers]
        return self.loop.regulariser * torch.stack(undecided).sum()

    def _cached(self, part: Part) -> tuple[list[Any], Any, Tensor]:
        """Inputs of the quantized network's block and outputs of the float one's for all samples, in memory."""
        batches = []
        for i, x_t, condition in self.states:
            _, _, output = self._seen(self.model, part, i, x_t, condition)
            leaves, tree, _ = self._seen(self.quantized, part, i, x_t, condition)
            batches.append((leaves, tree, output))
        leaves = [
            torch.cat(column) if isinstance(column[0], Tensor) else column[0]
            for column in zip(*(leaves for leaves, _, _ in batches), strict=True)
        ]
        return leaves, batches[0][1], torch.cat([output for _, _, output in batches])

    def _seen(
        self, denoiser: Denoiser, part: Part, i: int, x_t: Tensor, condition: Condition | None
    ) -> tuple[list[Any], Any, Tensor]:
        """Arguments, as leaves and a tree, and the output of a block in one forward, which ends there."""
        calls: list[tuple[list[Any], Any, Tensor]] = []

        def see(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], output: object) -> None:
            leaves, tree = tree_flatten((positional, named))
            calls.append((leaves, tree, _first(output)))
            raise _SeenError

        block = denoiser.network.get_submodule(part.name)
        with suppress(_SeenError), block.register_forward_hook(see, with_kwargs=True):
            self.ask(denoiser, i, x_t, condition)
        return calls[0]

    def _soft(self, part: Part) -> tuple[nn.Module, dict[str, SoftLayer]]:
        """A copy of the quantized block with undecided weights, and these layers by name."""
        parent = nn.ModuleDict({"block": copy.deepcopy(self.quantized.network.get_submodule(part.name))})
        layers = {}
        for name in part.layers:
            weight, quantizer = self.float_weight(name), self.quantizer(name, self.bits(name)[0])
            inside = f"block{name.removeprefix(part.name)}"
            layer = parent.get_submodule(inside)
            assert isinstance(layer, QuantizedLayer)
            spread = quantizer.spread(weight)
            layers[name] = SoftLayer(layer, weight, spread, quantizer.grid, self.loop.quantizes_inputs)
            above, _, child = inside.rpartition(".")
            parent.get_submodule(above).register_module(child, layers[name])
        return parent["block"], layers


def _first(output: object) -> Tensor:
    tensor = next(leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor))
    assert isinstance(tensor, Tensor)
    return tensor
