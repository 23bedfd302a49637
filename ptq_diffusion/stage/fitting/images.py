"""The images that a correction is fitted on along a path, and their states of float sampling."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.model import Condition
from ptq_diffusion.model.condition import concatenated, rows_of
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler import State, Step, Table


@dataclass(frozen=True)
class Images:
    """The images that a correction is fitted on.

    Args:
        chunks: in their order.
        float_m: the float output of a chunk at a step of float sampling, a learned variance behind it.
        conditions: of the images.
    """

    chunks: Sequence[Chunk]
    float_m: Callable[[Chunk, Step], Tensor]
    conditions: ConditionSource

    def condition(self, chunks: Sequence[Chunk], device: torch.device) -> Condition | None:
        """The condition of the images of some chunks, padding left out."""
        parts = [rows_of(chunk.condition(self.conditions, device), slice(chunk.count)) for chunk in chunks]
        conditions = [part for part in parts if part is not None]
        return reduce(concatenated, conditions) if conditions else None

    def float_states(self, count: int, shape: Sequence[int], steps: Table, device: torch.device) -> Iterator[PathState]:
        """The states of float sampling of the first `count` images at every step, made when they are asked for.

        Args:
            count: at least 1.
            shape: of a state, (C, H, W).
            steps: the table.
            device: of the states.
        """
        chunks = [chunk for chunk in self.chunks if chunk.first < count]
        noise = {chunk: ReplayedNoise(chunk.noise(shape)) for chunk in chunks}
        condition = rows_of(self.condition(chunks, device), slice(count))
        states: dict[Chunk, State] = {}
        for step in steps:
            for chunk in chunks:
                z = noise[chunk].at(step.i, device)
                if step.i == 0:
                    states[chunk] = steps.start(z)
                    continue
                before = steps[step.i - 1]
                m, variance = before.parted(self.float_m(chunk, before).to(device), shape[0])
                states[chunk] = before.advance(states[chunk], m, before.spread(variance), z)
            x_t = torch.cat([states[chunk].x[: chunk.count] for chunk in chunks])[:count]
            yield PathState(x_t, step, condition)


class ReplayedNoise:
    """The noise of every step; noise of steps that an interrupted fit has passed is drawn and dropped."""

    def __init__(self, noise: SampleNoise) -> None:
        self._noise, self._next = noise, 0

    def at(self, i: int, device: torch.device) -> Tensor:
        """The noise of step `i`, (B, C, H, W); steps must be read in rising order, each once, and may be skipped."""
        assert i >= self._next
        while self._next < i:
            self._noise.draw()
            self._next += 1
        self._next += 1
        return self._noise.draw(device)
