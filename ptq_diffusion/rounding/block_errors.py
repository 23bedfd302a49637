"""The error of a network's blocks on their calls, which lie in files while something of a block is learned."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.network.layer_settings import LayerSettings
from ptq_diffusion.network.rescaling import CONSTANT, matched_gain
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
        """The weight of a call of every step, (S,): that of the step, times its rows a call in units of the mean.

        So each row counts by its step alone, however many of them a calibration set has at that step. A guided state
        has two rows, so that it counts twice beside those of steps outside of the interval of guidance.

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
        return self.call_errors(part, [call])[0]

    def call_errors(self, part: Part, calls: Sequence[Call]) -> list[Tensor]:
        """The `call_error` of each of several calls, which share one forward, see `Call.joined`."""
        self.quantized.set_step(calls[0].i)
        # Files give tensors on the CPU.
        joined = Call.joined(calls).to(self.device)
        positional, named = joined.arguments
        outputs = tensors_of(self.quantized.network.get_submodule(part.name)(*positional, **named))
        counts = [call.count for call in calls]
        # Half precision has no squares of small errors.
        sides = [[one.float().split(counts) for one in side] for side in (outputs, joined.outputs)]
        pairs = [list(zip(*side, strict=True)) for side in zip(*sides, strict=True)]
        errors = [[(self.compared(*pair) - pair[1]).square().mean() for pair in of_output] for of_output in pairs]
        return [torch.stack(of_call).mean() for of_call in zip(*errors, strict=True)]

    def compared(self, output: Tensor, target: Tensor) -> Tensor:  # noqa: ARG002
        """The tensor that is compared with the target in place of a block's output, of its shape."""
        return output

    def draws(self, calls: CallFiles, size: tuple[int, int], draw: Generator) -> Iterator[Sequence[tuple[float, Call]]]:
        """An endless stream of random rows of random calls, each with the share of its error.

        Args:
            calls: of a block.
            size: how many calls are drawn, and how many rows of each.
            draw: of calls and rows.
        """
        sizes, shares = calls.sizes, (self.shares(calls) * len(self.table)).tolist()
        while True:
            places = torch.randint(len(calls), size[:1], generator=draw).tolist()
            chosen = [(place, torch.randperm(sizes[place][1], generator=draw)[: size[1]]) for place in places]
            yield [(shares[sizes[place][0]] / size[0], calls.rows(place, rows)) for place, rows in chosen]

    def add_gradient(self, part: Part, drawn: Sequence[tuple[float, Call]], unit: float) -> None:
        """Add the gradient of the error on some calls to what is learned.

        Calls at whose steps the block has the same settings share a forward.

        Args:
            part: which.
            drawn: shares and calls.
            unit: the error that counts as 1; where it is 0 there is nothing to learn.
        """
        block = self.quantized.network.get_submodule(part.name)
        settings = [module for module in block.modules() if isinstance(module, LayerSettings)]
        groups: list[tuple[list[int], list[tuple[float, Call]]]] = []
        for share, call in drawn:
            rows = [one.row(call.i) for one in settings]
            alike = (group for key, group in groups if key == rows and group[0][1].joins(call))
            if (group := next(alike, None)) is None:
                groups.append((rows, group := []))
            group.append((share / unit if unit else 0.0, call))
        for _, group in groups:
            errors = self.call_errors(part, [call for _, call in group])
            torch.stack([share * error for (share, _), error in zip(group, errors, strict=True)]).sum().backward()

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
            calls.append(Call.of(i, (positional, named), outputs, of_rows))

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
    # The root of 0 has no gradient.
    source, aim = (torch.where(vary, variance, 1.0).sqrt() for variance in variances)
    return matched_gain(source, aim, vary) * (output - means[0]) + means[1]


def _varies(mean: Tensor, variance: Tensor) -> Tensor:
    power = (mean.square() + variance).clamp(min=torch.finfo(torch.float32).eps)
    return variance > CONSTANT**2 * power


def _moments(x: Tensor, others: list[int]) -> tuple[Tensor, Tensor]:
    mean = x.mean(others, keepdim=True)
    return mean, (x - mean).square().mean(others, keepdim=True)
