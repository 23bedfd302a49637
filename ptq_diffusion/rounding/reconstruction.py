"""The rounding of a whole network, part by part."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.network import QuantizedDenoiser, QuantizedWeight
from ptq_diffusion.network.insertion import Integers, weight_quantizer
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.quantizer import AffineQuantizer, Quantizer
from ptq_diffusion.rounding.parts import Part, in_order_of_calls, parts_of
from ptq_diffusion.rounding.step_weights import States, StepWeights
from ptq_diffusion.sampler import Step, Table

Copy = tuple[str, int]
"""A copy of a weight: the layer's name and the bits."""


@dataclass(frozen=True)
class Subject:
    """The network that is rounded, and all that it is asked about.

    Args:
        model: the float network.
        quantized: its quantized copy, rounded to nearest, which its reconstruction owns: it takes the integers of
            every part.
        weight: from a bitwidth to a fresh quantizer of a weight, of the kind that `quantized` was made by.
        table: the sampler's.
        states: of the calibration set, read again for every part.
        trajectories: all states of float sampling, which weights of steps are measured along.
    """

    model: Denoiser
    quantized: QuantizedDenoiser
    weight: Callable[[int], Quantizer]
    table: Table
    states: States
    trajectories: States


class Reconstruction(ABC):
    """A network whose weights get integers part by part, in the order of a forward.

    Args:
        subject: the network.
        weighting: the rule for the weights of steps.
    """

    def __init__(self, subject: Subject, weighting: StepWeights) -> None:
        self.model, self.quantized = subject.model, subject.quantized
        self.table, self.states, self._weight = subject.table, subject.states, subject.weight
        self._trajectories = subject.trajectories
        self.weighting = weighting
        self._quantizers: dict[Copy, AffineQuantizer] = {}

    @abstractmethod
    def rounded(self, part: Part) -> Integers:
        """The integers of a part; the parts before it are installed."""

    @cached_property
    def step_weights(self) -> Tensor:
        """The weight of every step, (S,)."""
        return self.weighting.of(self.model, self.table, self._trajectories_on_device())

    def _trajectories_on_device(self) -> States:
        for i, x_t, condition in self._trajectories:
            yield i, x_t.to(self.device), None if condition is None else condition.to(self.device)

    @cached_property
    def parts(self) -> list[Part]:
        """The blocks of the network and the layers outside of them, in the order of a forward.

        A layer that no forward calls is in none, and stays rounded to nearest; so do blocks without a quantized weight.

        Raises:
            ValueError: there are no states.
        """
        i, x_t, condition = next(iter(self.states), (0, torch.empty(0), None))
        if not len(x_t):
            raise ValueError("expected states of float sampling to round on, got none; raise calibration.images")
        forward = partial(self.ask, self.model, i, x_t[:1], None if condition is None else condition.rows(slice(1)))
        layers = in_order_of_calls(self.model.network, self.quantized.layers(), forward)
        parts = parts_of(self.model.blocks(), [name for name in layers if self.bits(name)])
        if not parts:
            raise ValueError(
                "expected a plan with quantized weights to round, got one that leaves all of them float; set "
                "rounding=nearest or another bitwidth"
            )
        return parts

    def copies(self, part: Part) -> dict[Copy, tuple[int, ...]]:
        """The copies of weights of a part that have integers, and the shape of each."""
        shapes = {site.name: site.weight_shape for site in self.quantized.sites()}
        return {(name, bits): shapes[name] for name in part.layers for bits in self.bits(name)}

    def install(self, integers: Integers) -> None:
        """Let the quantized network compute with integers that were chosen."""
        for (name, bits), tensor in integers.items():
            weight = QuantizedWeight.of_integers(tensor.to(self.device), self.quantizer(name, bits))
            self.quantized.layer(name).weights[self.place(name, bits)] = weight

    def ask(self, denoiser: Denoiser, i: int, x_t: Tensor, condition: Condition | None) -> None:
        """Let a network compute its output at step i, for what is seen on the way."""
        step: Step = self.table[i]
        on_device = None if condition is None else condition.to(self.device)
        with torch.no_grad():
            denoiser.predict(x_t.to(self.device), step, on_device)

    @property
    def device(self) -> torch.device:
        """The device that both networks are on."""
        return next(self.model.parameters()).device

    def bits(self, name: str) -> list[int]:
        """The bitwidths of a layer's copies that have integers."""
        return [bits for bits in self.quantized.plan.weight_copies(name) if bits != FLOAT_BITS]

    def place(self, name: str, bits: int) -> int:
        """The index of a copy among a layer's weights."""
        return self.quantized.plan.weight_copies(name).index(bits)

    def float_weight(self, name: str) -> Tensor:
        """The weight of a float layer."""
        return self.model.network.get_parameter(f"{name}.weight").detach().float()

    def quantizer(self, name: str, bits: int) -> AffineQuantizer:
        """The frozen quantizer of a copy, whose range is searched on the CPU as that of nearest is.

        Raises:
            TypeError: a kind of quantizer whose integers cannot be stored yet.
        """
        if (name, bits) not in self._quantizers:
            equalisation = self.quantized.layer(name).settings.equalisation
            quantizer = weight_quantizer(self.float_weight(name).cpu(), bits, self._weight, equalisation)
            self._quantizers[name, bits] = quantizer.to(self.device)
        return self._quantizers[name, bits]
