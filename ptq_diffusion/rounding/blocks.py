"""Rounding learned by gradients, block by block."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq_diffusion.network import StoredWeight
from ptq_diffusion.network.insertion import Integers
from ptq_diffusion.network.integers import along_outputs
from ptq_diffusion.numeric.seed import generator
from ptq_diffusion.rounding.block_errors import BlockErrors, rescaled
from ptq_diffusion.rounding.calls import CallFiles
from ptq_diffusion.rounding.inputs import PathName
from ptq_diffusion.rounding.parts import Part
from ptq_diffusion.rounding.reconstruction import Subject
from ptq_diffusion.rounding.rounding import Reads, Rounding
from ptq_diffusion.rounding.soft import Descent, SoftIntegers
from ptq_diffusion.rounding.step_weights import StepWeights
from ptq_diffusion.rounding.weights import Copy, WeightReconstruction


class BRECQ(Rounding):
    """All layers of a block together, so that its output changes least (Li et al., ICLR 2021, arXiv 2102.05426).

    Blocks are the residual and attention blocks of the network; a layer outside of them is a block of its own. An
    iteration takes rows of some calls, each of one step, whose settings and copy of the weights it computes with.
    Inputs are quantized as when sampling, and the gradient goes straight through them. The error is the mean square of
    the output in units of that of nearest, without the paper's Fisher weights, as Q-Diffusion (ICCV 2023) has it.

    Ours, with `rescaled`: outputs are compared once a gain and an offset of every channel have given them the mean and
    the deviation of the float ones in each call, so that rounding is spent on what such a correction cannot repair.

    Args:
        path: whose inputs a block gets: those of the float network, or of the quantized one up to it.
        weights: of the steps.
        descent: how the integers are decided.
        calls: how many calls an iteration takes rows of.
        rows: how many rows of each.
        rescaled: whether a correction with rescaled layers is to follow, which the error then knows of.

    Raises:
        ValueError: an iteration would take no row.
    """

    reads = Reads.CALLS

    def __init__(
        self,
        path: PathName,
        weights: StepWeights,
        descent: Descent,
        calls: int = 4,
        rows: int = 4,
        rescaled: bool = False,
    ) -> None:
        if calls < 1 or rows < 1:
            raise ValueError(
                f"expected an iteration of at least 1 call and 1 row of it, got {calls} and {rows}; set calls and rows"
            )
        self.path, self.weights, self.descent, self.calls, self.rows = path, weights, descent, calls, rows
        self.rescaled = rescaled


class SoftWeight(StoredWeight):
    """A copy of a weight whose integers are undecided yet, with the values of one iteration, which all calls share.

    Args:
        soft: the integers.
        bits: of one.
    """

    symmetric = True

    def __init__(self, soft: SoftIntegers, bits: int) -> None:
        super().__init__()
        self.soft, self.bits = soft, bits
        self.renew()

    def renew(self) -> None:
        """Compute the values from the integers as they are now."""
        self._values = self.soft.values().requires_grad_()

    @property
    def gradient(self) -> Tensor:
        """The gradient by the values of all calls since `renew`."""
        return torch.zeros_like(self._values) if self._values.grad is None else self._values.grad

    def values(self, gain: Tensor | None = None) -> Tensor:
        return self._values if gain is None else self._values * along_outputs(gain, self._values.ndim)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"v": self.soft.v}


class BlockReconstruction(BlockErrors, WeightReconstruction):
    """Each block by its own calls, which lie in files while it is rounded.

    Args:
        subject: the network.
        rounding: the method.
        folder: for the files of one block.
    """

    def __init__(self, subject: Subject, rounding: BRECQ, folder: Path) -> None:
        super().__init__(subject, rounding.weights)
        self.rounding, self.folder = rounding, folder

    @property
    def path(self) -> PathName:
        return self.rounding.path

    def compared(self, output: Tensor, target: Tensor) -> Tensor:
        return rescaled(output, target) if self.rounding.rescaled else output

    def rounded(self, part: Part) -> Integers:
        with CallFiles.within(self.folder) as calls:
            self.collect(part, calls)
            nearest = self.error(part, calls)
            soft = self._learned(part, calls, nearest)
            integers = {copy: undecided.integers() for copy, undecided in soft.items()}
            self.install(integers)
            # An error that is no number, of a block beyond the range of half precision, is none that is smaller.
            if not self.error(part, calls) < nearest:
                integers = {(n, b): self.quantizer(n, b).to_integers(self.float_weight(n)) for n, b in integers}
        return integers

    def _learned(self, part: Part, calls: CallFiles, nearest: float) -> Mapping[Copy, SoftIntegers]:
        """Undecided integers of all copies of a part, as the descent leaves them."""
        descent, soft = self.rounding.descent, {copy: self._soft(*copy) for copy in self.copies(part)}
        weights = {copy: SoftWeight(undecided, copy[1]) for copy, undecided in soft.items()}
        optimizer = torch.optim.Adam([one.v for one in soft.values()], descent.learning_rate, fused=True)
        draws = self.draws(calls, (self.rounding.calls, self.rounding.rows), generator("blocks", part.name))
        with torch.enable_grad(), self._computing(weights):
            for iteration, drawn in zip(range(descent.iterations), draws, strict=False):
                for weight in weights.values():
                    weight.renew()
                self.add_gradient(part, drawn, nearest)
                for weight in weights.values():
                    by_values, share = weight.gradient, 1 / len(weights)
                    weight.soft.v.grad = descent.gradient(weight.soft, by_values, iteration, share)
                optimizer.step()
        return soft

    def _soft(self, name: str, bits: int) -> SoftIntegers:
        quantizer, weight = self.quantizer(name, bits), self.float_weight(name)
        return SoftIntegers(weight, *quantizer.spread(weight), quantizer.grid)

    @contextmanager
    def _computing(self, soft: Mapping[Copy, SoftWeight]) -> Iterator[None]:
        """Within this context the quantized network computes with undecided integers."""
        places = {copy: (self.quantized.layer(copy[0]).weights, self.place(*copy)) for copy in soft}
        before: dict[Copy, nn.Module] = {copy: weights[place] for copy, (weights, place) in places.items()}
        for copy, (weights, place) in places.items():
            weights[place] = soft[copy]
        try:
            yield
        finally:
            for copy, (weights, place) in places.items():
                weights[place] = before[copy]
