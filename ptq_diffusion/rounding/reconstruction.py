"""The rounding of a whole network, part by part."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial

import torch
from torch import Tensor

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.network import QuantizedDenoiser, QuantizedWeight
from ptq_diffusion.network.insertion import Integers, weight_quantizer
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.quantizer import AffineQuantizer, Quantizer
from ptq_diffusion.rounding.moments import Moments, MomentStream, columns
from ptq_diffusion.rounding.parts import Part, in_order_of_calls, joined, parts_of, show_inputs
from ptq_diffusion.rounding.rounding import LayerRounding
from ptq_diffusion.rounding.step_weights import States
from ptq_diffusion.sampler import Step, Table

ROOM = 2**28
"""Numbers of second moments that are in memory together, where the order of layers does not matter."""
Copy = tuple[str, int]
"""A copy of a weight: the layer's name and the bits."""


class Reconstruction:
    """A network whose weights get integers part by part, in the order of a forward.

    Args:
        model: the float network.
        quantized: its quantized copy, rounded to nearest, which this owns: it takes the integers of every part.
        weight: from a bitwidth to a fresh quantizer of a weight, of the kind that `quantized` was made by.
        table: the sampler's.
        states: of float sampling, read again for every part.
        rounding: the method.
    """

    def __init__(
        self,
        model: Denoiser,
        quantized: QuantizedDenoiser,
        weight: Callable[[int], Quantizer],
        table: Table,
        states: States,
        rounding: LayerRounding,
    ) -> None:
        self.model, self.quantized, self.table = model, quantized, table
        self.states, self.rounding, self._weight = states, rounding, weight
        self._quantizers: dict[Copy, AffineQuantizer] = {}

    @cached_property
    def parts(self) -> list[Part]:
        """The parts in their order. A layer that no forward calls is in none, and stays rounded to nearest.

        Raises:
            ValueError: there are no states.
        """
        i, x_t, condition = next(iter(self.states), (0, None, None))
        if x_t is None or not len(x_t):
            raise ValueError("expected states of float sampling to round on, got none; raise calibration.images")
        forward = partial(self._ask, self.model, i, x_t[:1], None if condition is None else condition.rows(slice(1)))
        layers = in_order_of_calls(self.model.network, self.quantized.layers(), forward)
        parts = [Part(part.name, tuple(filter(self._copies, part.layers))) for part in self._parts_of(layers)]
        parts = [part for part in parts if part.layers]
        return joined(parts, self._moment_size, ROOM) if self.rounding.inputs.path == "float" else parts

    def copies(self, part: Part) -> dict[Copy, tuple[int, ...]]:
        """The copies of weights of a part that have integers, and the shape of each."""
        shapes = {site.name: site.weight_shape for site in self.quantized.sites()}
        return {(name, bits): shapes[name] for name in part.layers for bits in self._copies(name)}

    def rounded(self, part: Part) -> Integers:
        """The integers of a part; the parts before it are installed."""
        moments = self._moments(part)
        return {copy: self._rounded(copy, moments[copy]) for copy in self.copies(part)}

    def install(self, integers: Integers) -> None:
        """Let the quantized network compute with integers that were chosen."""
        for (name, bits), tensor in integers.items():
            layer, quantizer = self.quantized.layer(name), self._quantizer(name, bits)
            place = self.quantized.plan.weight_copies(name).index(bits)
            layer.weights[place] = QuantizedWeight.of_integers(tensor.to(self._device), quantizer)

    def _rounded(self, copy: Copy, moments: Moments) -> Tensor:
        return self.rounding.integers(self._float_weight(copy[0]), self._quantizer(*copy), moments)

    def _moments(self, part: Part) -> Mapping[Copy, Moments]:
        how = self.rounding.inputs
        streams = {copy: MomentStream(self.step_weights, how.offsets) for copy in self.copies(part)}
        for batch, (i, x_t, condition) in enumerate(self.states):
            ask = partial(self._ask, i=i, x_t=x_t, condition=condition)
            for name, pair in self._inputs(part, batch, i, ask).items():
                bits = int(self.quantized.plan.at(name, i).weight)
                if bits != FLOAT_BITS:
                    streams[name, bits].add(i, *pair)
        return {copy: stream.moments() for copy, stream in streams.items()}

    @torch.no_grad()
    def _inputs(self, part: Part, batch: int, i: int, ask: Callable[[Denoiser], object]) -> Mapping[str, list[Tensor]]:
        """Quantized inputs of the part's layers in one batch and, where they are wanted, the float ones beside them."""
        how, network = self.rounding.inputs, self.model.network
        pairs: dict[str, list[Tensor]] = {}

        def take(name: str, x: Tensor) -> None:
            layer = network.get_submodule(name)
            pairs.setdefault(name, []).append(columns(layer, x, how.positions, name, batch))

        def quantized(name: str, x: Tensor) -> None:
            take(name, self.quantized.layer(name).settings(x, i))
            if how.path == "float" and how.target == "output":
                take(name, x)

        source = self.model if how.path == "float" else self.quantized
        show_inputs(source.network, part.layers, quantized, lambda: ask(source))
        if how.path == "quantized" and how.target == "output":
            show_inputs(network, part.layers, take, lambda: ask(self.model))
        return pairs

    def _ask(self, denoiser: Denoiser, i: int, x_t: Tensor, condition: Condition | None) -> None:
        step: Step = self.table[i]
        on_device = None if condition is None else condition.to(self._device)
        with torch.no_grad():
            denoiser.predict(x_t.to(self._device), step, on_device)

    @cached_property
    def step_weights(self) -> Tensor:
        """The weight of every step, (S,)."""
        return self.rounding.inputs.weights.of(self.model, self.table, self.states)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _parts_of(self, layers: list[str]) -> list[Part]:
        return parts_of(self.model.blocks(), layers)

    def _copies(self, name: str) -> list[int]:
        return [bits for bits in self.quantized.plan.weight_copies(name) if bits != FLOAT_BITS]

    def _moment_size(self, name: str) -> int:
        weight = self._float_weight(name)
        matrices = (2 if self.rounding.inputs.target == "output" else 1) * len(self._copies(name))
        return matrices * weight[0].numel() ** 2

    def _float_weight(self, name: str) -> Tensor:
        return self.model.network.get_parameter(f"{name}.weight").detach()

    def _quantizer(self, name: str, bits: int) -> AffineQuantizer:
        if (name, bits) not in self._quantizers:
            quantizer = weight_quantizer(self._float_weight(name).cpu(), bits, self._weight).to(self._device)
            if not isinstance(quantizer, AffineQuantizer):
                raise TypeError(f"expected an AffineQuantizer of a weight, got {type(quantizer).__name__}")
            self._quantizers[name, bits] = quantizer
        return self._quantizers[name, bits]
