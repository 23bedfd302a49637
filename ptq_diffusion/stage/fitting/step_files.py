"""Files of the steps of a fit along a path: the states of every chunk and both networks' outputs on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.correction.evidence import SomeBatch, tensor_names
from ptq_diffusion.engine.chunks import Chunk


class StepBatches(Sequence[SomeBatch]):
    """Images of the chunks of one step, each chunk mapped when it is asked for.

    Args:
        kind: with m or without.
        folder: of the step.
        rows: which images of every chunk; a chunk of which there are none is left out.
        files: reads them.
    """

    def __init__(
        self, kind: type[SomeBatch], folder: Path, rows: Sequence[tuple[Chunk, slice]], files: "ChunkFiles"
    ) -> None:
        self._kind, self._folder, self._files = kind, folder, files
        self._rows = [(chunk, images) for chunk, images in rows if images.start < images.stop]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> SomeBatch:  # type: ignore[override]
        chunk, images = self._rows[place]
        tensors = self._files.tensors(self._folder / chunk.name)
        rows = {name: tensors[name][images] for name in tensor_names(self._kind)}
        past, float_past = (tuple(x_0[images] for x_0 in past_of(tensors, name)) for name in ("past", "float_past"))
        return self._kind(chunk.first + images.start, **rows, past=past, float_past=float_past)


class ChunkFiles:
    """Files of chunks, each opened once: its tensors are mapped, so that they take memory only where there is room."""

    def __init__(self) -> None:
        self._tensors: dict[Path, Mapping[str, Tensor]] = {}

    def tensors(self, file: Path) -> Mapping[str, Tensor]:
        """The tensors of a chunk; on the float path its states are those of float sampling."""
        if file not in self._tensors:
            tensors = load_file(file)
            aliases = {f"float_{name}": tensor for name, tensor in tensors.items() if not name.startswith("float_")}
            self._tensors[file] = aliases | tensors
        return self._tensors[file]

    def forget(self, folder: Path) -> None:
        """Close the files of a folder, whose room on the disk is free again when it is removed."""
        self._tensors = {file: tensors for file, tensors in self._tensors.items() if file.parent != folder}


def past_tensors(past: Sequence[Tensor], name: str) -> dict[str, Tensor]:
    """The earlier predictions of x_0 under name/0, name/1, the latest first."""
    return {f"{name}/{j}": x_0.clone() for j, x_0 in enumerate(past)}


def past_of(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
    """The predictions that `past_tensors` named."""
    return tuple(tensors[key] for key in sorted(key for key in tensors if key.startswith(f"{name}/")))
