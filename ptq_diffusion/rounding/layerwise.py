"""The rounding of a network by second moments of the inputs of its layers."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial

import torch
from torch import Tensor

from ptq_diffusion.model import Denoiser
from ptq_diffusion.network.insertion import Integers
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.rounding.moments import Moments, MomentStream, columns
from ptq_diffusion.rounding.parts import Part, dealt, joined, show_inputs
from ptq_diffusion.rounding.reconstruction import Subject
from ptq_diffusion.rounding.rounding import LayerRounding
from ptq_diffusion.rounding.weights import Copy, WeightReconstruction

ROOM = 2**28
"""Numbers of second moments that are in memory together, where the order of layers does not matter."""


class LayerReconstruction(WeightReconstruction):
    """Each layer by the moments of its own inputs; no input is kept.

    Along the float path all layers are independent, and as many of them as there is room for share a pass over the
    states; along the quantized path each part waits for those before it.

    Args:
        subject: the network.
        rounding: the method.
    """

    def __init__(self, subject: Subject, rounding: LayerRounding) -> None:
        super().__init__(subject, rounding.inputs.weights)
        self.rounding = rounding

    @cached_property
    def parts(self) -> list[Part]:
        parts = super().parts
        return joined(parts, self._moment_size, ROOM) if self.rounding.inputs.path == "float" else parts

    def portions(self, part: Part, count: int) -> list[Part]:
        return dealt(part, self._moment_size, count)

    def rounded(self, part: Part) -> Integers:
        moments = self.moments(part)
        return {
            (name, bits): self.rounding.integers(
                self.float_weight(name), self.quantizer(name, bits), moments[name, bits]
            )
            for name, bits in self.copies(part)
        }

    def moments(self, part: Part) -> Mapping[Copy, Moments]:
        """Moments of the inputs that each copy of a weight meets, at the steps that use it."""
        how = self.rounding.inputs
        streams = {copy: MomentStream(self.step_weights, how.offsets) for copy in self.copies(part)}
        for batch, (i, x_t, condition) in enumerate(self.states):
            ask = partial(self.ask, i=i, x_t=x_t, condition=condition)
            for name, pair in self._inputs(part, batch, i, ask).items():
                bits = self.quantized.plan.at(name, i).weight
                if bits != FLOAT_BITS:
                    streams[name, bits].add(i, *pair)
        return {copy: stream.moments() for copy, stream in streams.items()}

    @torch.no_grad()
    def _inputs(self, part: Part, batch: int, i: int, ask: Callable[[Denoiser], object]) -> Mapping[str, list[Tensor]]:
        """Quantized inputs of the part's layers in one batch and, where they are wanted, the float ones beside them."""
        how, network = self.rounding.inputs, self.model.network
        pairs: dict[str, list[Tensor]] = {}

        def take(name: str, x: Tensor) -> None:
            inputs = columns(network.get_submodule(name), x, how.positions, name, batch)
            pairs.setdefault(name, []).append(inputs)

        def take_quantized(name: str, x: Tensor) -> None:
            take(name, self.quantized.layer(name).settings(x, i))
            if how.path == "float" and how.target == "output":
                take(name, x)

        source = self.model if how.path == "float" else self.quantized
        show_inputs(source.network, part.layers, take_quantized, lambda: ask(source))
        if how.path == "quantized" and how.target == "output":
            show_inputs(network, part.layers, take, lambda: ask(self.model))
        return pairs

    def _moment_size(self, name: str) -> int:
        matrices = (2 if self.rounding.inputs.target == "output" else 1) * len(self.bits(name))
        return matrices * self.float_weight(name)[0].numel() ** 2
