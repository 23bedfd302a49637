"""The stored images of all variants, the same noise in the same row."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ptq_diffusion.engine.chunks import Chunk

Batch = dict[str, Tensor]
"""Images by variant, (N, C, H, W) uint8; image i of each comes from the same noise."""
IMAGES = "images"


class StoredImages:
    """The images of a samples artefact by their place in the order of seeds and samples; only those asked for are read.

    Args:
        folder: of the artefact.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted((folder / "chunks").glob("*.safetensors"))
        self._ends = list(accumulate(map(_count, self._files)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def rows(self, first: int, count: int) -> Tensor:
        """Images `first` to `first + count`, (count, C, H, W) uint8, of those that there are."""
        return torch.cat(list(self._parts(first, first + count)))

    def _parts(self, first: int, stop: int) -> Iterator[Tensor]:
        for file, begin, end in zip(self._files, [0, *self._ends], self._ends, strict=False):
            if begin < stop and first < end:
                with safe_open(file, "pt") as chunk:
                    yield chunk.get_slice(IMAGES)[max(first - begin, 0) : min(stop, end) - begin]


class PairedImages:
    """The images of several samples artefacts; one batch of each is in memory at a time.

    Args:
        folders: of the artefacts, by variant.
        batch: images of a batch; the last one may have fewer.

    Raises:
        ValueError: variants of different numbers of images.
    """

    def __init__(self, folders: Mapping[str, Path], batch: int) -> None:
        self._variants, self._batch = {variant: StoredImages(folder) for variant, folder in folders.items()}, batch
        counts = {variant: len(images) for variant, images in self._variants.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"expected as many images of every variant, got {counts}; draw them again with force=true")
        (self._count,) = set(counts.values())

    def chunks(self) -> list[Chunk]:
        """The batches in their order, which may hold the end of one seed and the beginning of the next."""
        starts = range(0, self._count, self._batch)
        return [Chunk(IMAGES, 0, first, self._batch, min(self._batch, self._count - first)) for first in starts]

    def batch(self, chunk: Chunk) -> Batch:
        """The images of a batch."""
        return {variant: images.rows(chunk.first, chunk.count) for variant, images in self._variants.items()}


def _count(file: Path) -> int:
    """The images of a chunk's file, by its header."""
    with safe_open(file, "pt") as chunk:
        count: int = chunk.get_slice(IMAGES).get_shape()[0]
    return count
