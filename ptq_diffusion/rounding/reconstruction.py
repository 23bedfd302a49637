"""A network and its quantized copy, of which something is learned part by part."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.quantizer import Quantizer
from ptq_diffusion.rounding.parts import Part, in_order_of_calls
from ptq_diffusion.rounding.step_weights import States, StepWeights
from ptq_diffusion.sampler import Step, Table


@dataclass(frozen=True)
class Subject:
    """The network of which parts are learned, and all that it is asked about.

    Args:
        model: the float network.
        quantized: its quantized copy, which its reconstruction owns: it takes what is learned of every part.
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
    """A network of which something is learned part by part, in the order of a forward.

    Args:
        subject: the network.
        weighting: the rule for the weights of steps.
    """

    def __init__(self, subject: Subject, weighting: StepWeights) -> None:
        self.model, self.quantized = subject.model, subject.quantized
        self.table, self.states = subject.table, subject.states
        self._trajectories = subject.trajectories
        self.weighting = weighting

    @property
    @abstractmethod
    def parts(self) -> list[Part]:
        """The blocks of the network and the layers outside of them of which something is learned, in order.

        Raises:
            ValueError: there are no states, or there is nothing to learn.
        """

    @cached_property
    def step_weights(self) -> Tensor:
        """The weight of every step, (S,)."""
        return self.weighting.of(self.model, self.table, self._trajectories_on_device())

    def _trajectories_on_device(self) -> States:
        for i, x_t, condition in self._trajectories:
            yield i, x_t.to(self.device), None if condition is None else condition.to(self.device)

    def layers_in_order(self) -> list[str]:
        """The layers that a forward calls, in its order.

        Raises:
            ValueError: there are no states.
        """
        i, x_t, condition = next(iter(self.states), (0, torch.empty(0), None))
        if not len(x_t):
            raise ValueError("expected states of float sampling to round on, got none; raise calibration.images")
        forward = partial(self.ask, self.model, i, x_t[:1], None if condition is None else condition.rows(slice(1)))
        return in_order_of_calls(self.model.network, self.quantized.layers(), forward)

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
