"""States of float sampling as they are read, batch by batch, from the files of trajectories."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import IterableDataset

from ptq_diffusion.data import ChosenStates
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.model import Condition
from ptq_diffusion.model.condition import rows_of


class States(IterableDataset[tuple[int, Tensor, Condition | None]]):
    """Triples (i, x_t (B, C, H, W), condition) of all steps i and chunks; one chunk is in memory at a time.

    A batch holds the states of one step and chunk that a calibration set chose; where it chose none there is no batch.

    Args:
        folder: of the chunks' files.
        chunks: in their order.
        chosen: the states that are read.
        conditions: of the samples.
    """

    def __init__(
        self, folder: Path, chunks: Sequence[Chunk], chosen: ChosenStates, conditions: ConditionSource
    ) -> None:
        self.folder, self.chunks, self.chosen, self.conditions = folder, chunks, chosen, conditions

    def __len__(self) -> int:
        return sum(len(self._rows(i, chunk)) > 0 for chunk in self.chunks for i in range(self._steps))

    def __iter__(self) -> Iterator[tuple[int, Tensor, Condition | None]]:
        for chunk in self.chunks:
            condition = chunk.condition(self.conditions)
            for i, x_t in enumerate(load_file(self.folder / chunk.name)["states"]):
                rows = self._rows(i, chunk)
                if len(rows):
                    yield i, x_t[rows], rows_of(condition, rows)

    @property
    def _steps(self) -> int:
        return len(self.chosen.chosen)

    def _rows(self, step: int, chunk: Chunk) -> Tensor:
        return self.chosen.rows(step, slice(chunk.first, chunk.first + chunk.count))
