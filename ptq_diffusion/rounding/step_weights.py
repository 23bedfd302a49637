"""How much the error of each step counts in a rounding."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.network.damage import step_adjoint
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.sampler import State, Table

States = Iterable[tuple[int, Tensor, Condition | None]]
"""Batches of float sampling: the step's index, its states (B, C, H, W) and their condition; each chunk's in order."""


class StepWeights(ABC):
    """A rule for the weights of steps."""

    @abstractmethod
    def of(self, model: Denoiser, table: Table, states: States) -> Tensor:
        """The weight of every step, (S,) float64, which sum to 1.

        Args:
            model: the float network.
            table: of S steps.
            states: of float sampling, on the network's device.
        """


class UniformSteps(StepWeights):
    """Every step counts alike."""

    def of(self, model: Denoiser, table: Table, states: States) -> Tensor:  # noqa: ARG002
        return torch.full((len(table),), 1 / len(table), dtype=torch.float64)


class EffectOnImage(StepWeights):
    """A step counts as the square of what a small error of m there does to x_0.

    That is b^2 E|J^T v|^2 / |v|^2 of a one-step sampler, b being the step's gain, J the derivative of x_0 by the step's
    result along float sampling, and v a random direction: one backward pass through every step (`network.damage`). Of
    a multistep sampler an error of m counts in the prediction of x_0 that the step hands on, too.

    Args:
        images: how many images it is measured on, at most those of the first micro-batch.

    Raises:
        ValueError: fewer than one image.
    """

    def __init__(self, images: int = 8) -> None:
        if images < 1:
            raise ValueError(f"expected at least 1 image to measure the effect of a step on, got {images}")
        self.images = images

    def of(self, model: Denoiser, table: Table, states: States) -> Tensor:
        effects = self.effects(model, table, states)
        return effects / effects.sum()

    def effects(self, model: Denoiser, table: Table, states: States) -> Tensor:
        """The mean squared change of x_0 by that of m at every step, (S,) float64.

        Raises:
            ValueError: there is no state of a step.
        """
        first = dict[int, tuple[Tensor, Condition | None]]()
        for i, x_t, condition in states:
            if i in first:
                break
            first[i] = x_t[: self.images], rows_of(condition, slice(self.images))
        if len(first) < len(table):
            raise ValueError(f"expected states of all {len(table)} steps, got those of {len(first)}; take them again")
        effects, x_t = torch.zeros(len(table), dtype=torch.float64), first[0][0]
        direction = torch.randn(x_t.shape, generator=generator("direction of x_0", "rounding")).to(x_t.device)
        adjoint = State(direction, ())
        for step in reversed(table):
            x_t, condition = first[step.i]
            # An error of m reaches what follows through x_s and through the prediction of x_0 that is handed on.
            by_m = step.gain * adjoint.x + sum(step.p_m * gradient for gradient in adjoint.past[:1])
            effects[step.i] = _power(by_m) / _power(direction)
            adjoint = step_adjoint(model, (), x_t, step, adjoint, condition).state
        return effects


class SoftmaxOfEffect(StepWeights):
    """The softmax of the effects on x_0, in units of their mean; weighted as in AdaTSQ, whose measure is another.

    Args:
        temperature: towards 0 the step with the greatest effect counts alone, far above 1 all count alike.
        images: how many images effects are measured on, see `EffectOnImage`.

    Raises:
        ValueError: a temperature that is not positive, or fewer than one image.
    """

    def __init__(self, temperature: float = 1.0, images: int = 8) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"expected a positive temperature, got {temperature}")
        self.temperature, self._effect = temperature, EffectOnImage(images)

    def of(self, model: Denoiser, table: Table, states: States) -> Tensor:
        effects = self._effect.effects(model, table, states)
        return torch.softmax(effects / effects.mean() / self.temperature, 0)


def _power(tensor: Tensor) -> float:
    return float(tensor.cpu().double().square().mean())
