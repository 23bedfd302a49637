"""The error of a network's blocks on their calls, which lie in files while something of a block is learned."""

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.network.rescaling import CONSTANT, LARGEST_GAIN
from ptq_diffusion.rounding.calls import Call, CallFiles, call_of, leaves_of_rows, tensors_of
from ptq_diffusion.rounding.inputs import PathName
from ptq_diffusion.rounding.parts import Part
from ptq_diffusion.rounding.reconstruction import Reconstruction


class BlockErrors(Reconstruction):
    """A reconstruction that reads the calls of each block."""

    @property
    @abstractmethod
    def path(self) -> PathName:
        """The network whose inputs a block gets: the float one, or the quantized one up to it."""

    @torch.no_grad()
    def error(self, part: Part, calls: CallFiles) -> float:
        """The mean square by which a block's outputs differ from the float ones, steps weighted."""
        shares = self.shares(calls)
        errors = [self.call_error(part, call) * shares[call.i] for call in calls]
        return float(sum(errors) / sum(shares[i] for i, _ in calls.sizes))

    def shares(self, calls: CallFiles) -> Tensor:
        """The weight of a call of every step, (S,): that of the step, times its states a call in units of the mean.

        So each state counts by its step alone, however many of them a calibration set has at that step.

        Raises:
            ValueError: no step of the calls has a weight.
        """
        rows, counts = ([0] * len(self.table) for _ in range(2))
        for i, count in calls.sizes:
            rows[i] += count
            counts[i] += 1
        # Whole numbers: a set with as many states in all calls leaves the weights as they are, bit for bit.
        pairs = ((row * len(calls), count * sum(rows)) for row, count in zip(rows, counts, strict=True))
        crowding = [above / below if below else 0.0 for above, below in pairs]
        shares = self.step_weights * torch.tensor(crowding, dtype=torch.float64)
        if not shares.any():
            raise ValueError(
                "expected states of a block at a step that has a weight, got none; choose other step weights or "
                "another calibration_set"
            )
        return shares

    def call_error(self, part: Part, call: Call) -> Tensor:
        """The mean square by which a block's outputs differ from the float ones in one call."""
        self.quantized.set_step(call.i)
        # Files give tensors on the CPU.
        call = call.to(self.device)
        positional, named = call.arguments
        outputs = tensors_of(self.quantized.network.get_submodule(part.name)(*positional, **named))
        # Half precision has no squares of small errors.
        pairs = [(one.float(), other.float()) for one, other in zip(outputs, call.outputs, strict=True)]
        return torch.stack([(self.compared(*pair) - pair[1]).square().mean() for pair in pairs]).mean()

    def compared(self, output: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """The tensor that is compared with the target in place of a block's output, of its shape."""
        return output

    def add_gradient(self, part: Part, calls: CallFiles, size: tuple[int, int], unit: float, draw: Generator) -> None:
        """Add the gradient of the error on some rows of some calls to what is learned.

        Args:
            part: which.
            calls: of it.
            size: how many calls are drawn, and how many rows of each.
            unit: the error that counts as 1; where it is 0 there is nothing to learn.
            draw: of calls and rows.
        """
        shares = self.shares(calls) * len(self.table)
        for place in torch.randint(len(calls), size[:1], generator=draw).tolist():
            call = calls[place]
            some = call.rows(torch.randperm(call.count, generator=draw)[: size[1]])
            share = float(shares[call.i]) / (size[0] * unit) if unit else 0.0
            (share * self.call_error(part, some)).backward()

    @torch.no_grad()
    def collect(self, part: Part, calls: CallFiles) -> None:
        """Append the calls of a part in all states.

        Raises:
            ValueError: see `leaves_of_rows`.
        """
        of_rows: list[bool] | None = None
        for i, x_t, condition in self.states:
            of_rows = of_rows or self._leaves_of_rows(part, i, x_t, condition)
            positional, named, outputs = self._call(self.model, part, i, x_t, condition)
            if self.path == "quantized":
                positional, named, _ = self._call(self.quantized, part, i, x_t, condition)
            calls.append(Call(i, (positional, named), outputs, of_rows))

    def _leaves_of_rows(self, part: Part, i: int, x_t: Tensor, condition: Condition | None) -> list[bool]:
        block = self.model.network.get_submodule(part.name)
        one, two = (
            partial(self.ask, self.model, i, x_t[[0] * count], rows_of(condition, [0] * count)) for count in (1, 2)
        )
        return leaves_of_rows(block, one, two)

    def _call(
        self, denoiser: Denoiser, part: Part, i: int, x_t: Tensor, condition: Condition | None
    ) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
        block = denoiser.network.get_submodule(part.name)
        return call_of(block, lambda: self.ask(denoiser, i, x_t, condition))


def rescaled(output: Tensor, target: Tensor) -> Tensor:
    """g y + b with each channel's mean and, where both vary alike, its standard deviation of the target.

    As `network.Rescaling.between` has it, which corrections of rescaled layers fit at every step, with a gradient.

    Args:
        output: y of one step, images (R, C, H, W) or others (R, ..., C).
        target: of its shape.
    """
    channels = 1 if output.dim() == 4 else output.dim() - 1
    others = [place for place in range(output.dim()) if place != channels]
    means, variances = zip(*(_moments(part, others) for part in (output, target)), strict=True)
    pairs = zip(means, variances, strict=True)
    vary = torch.stack([_varies(mean, variance) for mean, variance in pairs]).all(0)
    # A channel that does not vary has no ratio, and a gradient through one would be no number.
    source, aim = (torch.where(vary, variance, 1.0) for variance in variances)
    ratio = (aim / source).sqrt()
    alike = (ratio < LARGEST_GAIN) & (ratio > 1 / LARGEST_GAIN)
    return torch.where(alike, ratio, 1.0) * (output - means[0]) + means[1]


def _varies(mean: Tensor, variance: Tensor) -> Tensor:
    power = (mean.square() + variance).clamp(min=torch.finfo(torch.float32).eps)
    return variance > CONSTANT**2 * power


def _moments(x: Tensor, others: list[int]) -> tuple[Tensor, Tensor]:
    mean = x.mean(others, keepdim=True)
    return mean, (x - mean).square().mean(others, keepdim=True)
