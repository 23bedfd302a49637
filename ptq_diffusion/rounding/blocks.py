"""Rounding learned by gradients, block by block."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.network import StoredWeight
from ptq_diffusion.network.insertion import Integers
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.rounding.calls import Call, CallFiles, call_of, leaves_of_rows, tensors_of
from ptq_diffusion.rounding.inputs import PathName
from ptq_diffusion.rounding.parts import Part
from ptq_diffusion.rounding.reconstruction import Copy, Reconstruction, Subject
from ptq_diffusion.rounding.rounding import Reads, Rounding
from ptq_diffusion.rounding.soft import Descent, SoftIntegers
from ptq_diffusion.rounding.step_weights import StepWeights


class BRECQ(Rounding):
    """All layers of a block together, so that its output changes least (Li et al., ICLR 2021, arXiv 2102.05426).

    Blocks are the residual and attention blocks of the network; a layer outside of them is a block of its own. An
    iteration takes rows of some calls, each of one step, whose settings and copy of the weights it computes with.
    Inputs are quantized as when sampling, and the gradient goes straight through them. The error is the mean square of
    the output in units of that of nearest, without the paper's Fisher weights, as Q-Diffusion (ICCV 2023) has it.

    Args:
        path: whose inputs a block gets: those of the float network, or of the quantized one up to it.
        weights: of the steps.
        descent: how the integers are decided.
        calls: how many calls an iteration takes rows of.
        rows: how many rows of each.

    Raises:
        ValueError: an iteration would take no row.
    """

    reads = Reads.CALLS

    def __init__(self, path: PathName, weights: StepWeights, descent: Descent, calls: int = 4, rows: int = 8) -> None:
        if calls < 1 or rows < 1:
            raise ValueError(f"expected an iteration of at least 1 call and 1 row of it, got {calls} and {rows}")
        self.path, self.weights, self.descent, self.calls, self.rows = path, weights, descent, calls, rows


class SoftWeight(StoredWeight):
    """A copy of a weight whose integers are undecided yet.

    Args:
        soft: the integers.
        bits: of one.
    """

    symmetric = True

    def __init__(self, soft: SoftIntegers, bits: int) -> None:
        super().__init__()
        self.soft, self.bits = soft, bits

    def values(self, gain: Tensor | None = None) -> Tensor:
        values = self.soft.values()
        return values if gain is None else values * gain.view(-1, *[1] * (values.dim() - 1))

    def tensors(self) -> Mapping[str, Tensor]:
        return {"v": self.soft.v}


class BlockReconstruction(Reconstruction):
    """Each block by its own calls, which lie in files while it is rounded.

    Args:
        subject: the network.
        rounding: the method.
        folder: for the files of one block.
    """

    def __init__(self, subject: Subject, rounding: BRECQ, folder: Path) -> None:
        super().__init__(subject, rounding.weights)
        self.rounding, self.folder = rounding, folder

    def rounded(self, part: Part) -> Integers:
        with CallFiles.within(self.folder) as calls:
            self.collect(part, calls)
            nearest = self.error(part, calls)
            soft = self._learned(part, calls, nearest)
            integers = {copy: undecided.integers() for copy, undecided in soft.items()}
            self.install(integers)
            if self.error(part, calls) >= nearest:
                integers = {(n, b): self.quantizer(n, b).to_integers(self.float_weight(n)) for n, b in integers}
        return integers

    @torch.no_grad()
    def error(self, part: Part, calls: CallFiles) -> float:
        """The mean square by which a block's outputs differ from the float ones, steps weighted."""
        shares = self.shares(calls)
        errors = [self._error(part, call) * shares[call.i] for call in calls]
        return float(sum(errors) / sum(shares[i] for i, _ in calls.sizes))

    def shares(self, calls: CallFiles) -> Tensor:
        """The weight of a call of every step, (S,): that of the step, times its states a call in units of the mean.

        So each state counts by its step alone, however many of them a calibration set has at that step.
        """
        rows, counts = ([0] * len(self.table) for _ in range(2))
        for i, count in calls.sizes:
            rows[i] += count
            counts[i] += 1
        # Whole numbers: a set with as many states in all calls leaves the weights as they are, bit for bit.
        pairs = ((row * len(calls), count * sum(rows)) for row, count in zip(rows, counts, strict=True))
        crowding = [above / below if below else 0.0 for above, below in pairs]
        return self.step_weights * torch.tensor(crowding, dtype=torch.float64)

    def _learned(self, part: Part, calls: CallFiles, nearest: float) -> Mapping[Copy, SoftIntegers]:
        """Undecided integers of all copies of a part, as the descent leaves them."""
        descent, soft = self.rounding.descent, {copy: self._soft(*copy) for copy in self.copies(part)}
        optimizer = torch.optim.Adam([undecided.v for undecided in soft.values()], descent.learning_rate)
        draw, shares = generator("blocks", part.name), self.shares(calls) * len(self.table)
        with torch.enable_grad(), self._softened(soft):
            for iteration in range(descent.iterations):
                optimizer.zero_grad()
                progress = iteration / descent.iterations
                penalties = [undecided.penalty(progress, descent.warmup) for undecided in soft.values()]
                (descent.penalty * torch.stack(penalties).mean()).backward()
                for place in torch.randint(len(calls), (self.rounding.calls,), generator=draw).tolist():
                    call = calls[place]
                    some = call.rows(torch.randperm(call.count, generator=draw)[: self.rounding.rows])
                    share = float(shares[call.i]) / (self.rounding.calls * nearest) if nearest else 0.0
                    (share * self._error(part, some)).backward()
                optimizer.step()
        return soft

    def _error(self, part: Part, call: Call) -> Tensor:
        self.quantized.set_step(call.i)
        positional, named = call.arguments
        outputs = tensors_of(self.quantized.network.get_submodule(part.name)(*positional, **named))
        pairs = zip(outputs, call.outputs, strict=True)
        return torch.stack([(output - target).square().mean() for output, target in pairs]).mean()

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
            if self.rounding.path == "quantized":
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

    def _soft(self, name: str, bits: int) -> SoftIntegers:
        weight, quantizer = self.float_weight(name), self.quantizer(name, bits)
        return SoftIntegers(weight, *quantizer.spread(weight), quantizer.grid)

    @contextmanager
    def _softened(self, soft: Mapping[Copy, SoftIntegers]) -> Iterator[None]:
        """Within this context the quantized network computes with undecided integers."""
        places = {copy: (self.quantized.layer(copy[0]).weights, self.place(*copy)) for copy in soft}
        before: dict[Copy, nn.Module] = {copy: weights[place] for copy, (weights, place) in places.items()}
        for copy, (weights, place) in places.items():
            weights[place] = SoftWeight(soft[copy], copy[1])
        try:
            yield
        finally:
            for copy, (weights, place) in places.items():
                weights[place] = before[copy]
