"""Readers that turn a folder into one uint8 tensor of images."""

import io
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ptq_diffusion.data.file_source import FileSource, broken_shard, find_shards, parquet

GREY, SIXTEEN_BITS = ("1", "L", "LA", "La"), ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of images without colours."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@dataclass(frozen=True)
class LabelledImages:
    """Images as bytes, (N, C, H, W) uint8, and their class labels, (N,) int64, or None where the source has none.

    `names` are the names of labels 0, 1, ...: of classes, or captions; None where the source knows none.
    """

    images: Tensor
    labels: Tensor | None
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The names of labels 0, 1, ..., their numbers where the source knows none; None without labels."""
        return None if self.labels is None else _named(self.labels.tolist(), self.names)


class ImageSource(FileSource):
    """A source of images."""

    @abstractmethod
    def load(self) -> LabelledImages:
        """Read everything into memory.

        Raises:
            FileNotFoundError: the folder does not exist or holds no image.
            ValueError: the images differ in size, or one cannot be read.
        """

    def label_names(self) -> tuple[str, ...] | None:
        """The `label_names` of what `load` returns; a source that can tell them without reading images does.

        Raises:
            FileNotFoundError: there is no file.
            ValueError: the labels cannot be read.
        """
        return self.load().label_names


class ParquetImages(ImageSource):
    """Parquet shards as the `datasets` library writes them: `<split>-*.parquet`, an image column of encoded bytes.

    Args:
        folder: the folder of the shards.
        split: which split, the first part of the shard's name.
        image_column: the column of `{bytes, path}` structs.
        label_column: the column of class indices, or None.
    """

    def __init__(self, folder: str, split: str, image_column: str, label_column: str | None = "label") -> None:
        self.folder, self.split = Path(folder), split
        self.image_column, self.label_column = image_column, label_column

    def files(self) -> list[Path]:
        return find_shards(self.folder, self.split, "set data.folder to the dataset's folder")

    def load(self) -> LabelledImages:
        columns = [self.image_column, *([self.label_column] if self.label_column else [])]
        images: list[Tensor] = []
        labels: list[int] = []
        names: tuple[str, ...] | None = None
        for shard in self.files():
            with self._readable(shard, columns):
                table = parquet().read_table(shard, columns=columns).select(columns)
                cells = [cell["bytes"] for cell in table[self.image_column].to_pylist()]
            images += [_decode(encoded, shard) for encoded in cells]
            labels += table[self.label_column].to_pylist() if self.label_column else []
            names = _class_names(table.schema.metadata, self.label_column) if self.label_column else None
        return LabelledImages(_stack(images, self.folder), torch.tensor(labels) if labels else None, names)

    def label_names(self) -> tuple[str, ...] | None:
        if not self.label_column:
            return None
        labels: list[int] = []
        names: tuple[str, ...] | None = None
        for shard in self.files():
            with self._readable(shard, [self.label_column]):
                table = parquet().read_table(shard, columns=[self.label_column]).select([self.label_column])
            labels += table[self.label_column].to_pylist()
            names = _class_names(table.schema.metadata, self.label_column)
        if lacking := sum(label is None for label in labels):
            raise ValueError(
                f"expected a label of every image in the column {self.label_column}, got none of {lacking}; "
                "leave these images out"
            )
        return _named(labels, names) if labels else None

    @contextmanager
    def _readable(self, shard: Path, columns: Sequence[str]) -> Iterator[None]:
        """Turns the errors of reading columns of a shard within the context into one that says what to set."""
        try:
            yield
        except (broken_shard(), KeyError, TypeError) as error:
            raise ValueError(
                f"expected parquet with {', '.join(columns)} in {shard}, images as structs that hold bytes; "
                f"got another or a broken file ({' '.join(str(error).split())[:300]}); set data.image_column and "
                "data.label_column, or fetch the file again"
            ) from error


class FolderImages(ImageSource):
    """Every image below a folder, sorted by path; unlabelled.

    Args:
        folder: the folder, searched recursively for png, jpg, jpeg, bmp and webp files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def files(self) -> list[Path]:
        files = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            kinds = ", ".join(sorted(SUFFIXES))
            raise FileNotFoundError(f"expected images ({kinds}) below {self.folder}, found none; check the path")
        return files

    def check(self) -> Tensor:
        """The first image, (1, C, H, W) uint8, of the shape of all that `load` returns; no other is decoded.

        Raises:
            FileNotFoundError: there is no image.
            ValueError: the images differ in size, or one is none.
        """
        return next(self.batches(1))

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in their order, (n <= size, C, H, W) uint8, of which one batch is in memory.

        Raises:
            FileNotFoundError: there is no image.
            ValueError: the images differ in size, or one cannot be read.
        """
        # Headers tell before anything is decoded how many channels a grey image has among the others.
        files, (channels, _, _) = self.files(), self._shape()
        for first in range(0, len(files), size):
            yield torch.stack([_read(path).expand(channels, -1, -1) for path in files[first : first + size]])

    def load(self) -> LabelledImages:
        # Filled one by one, as a list of all would be in memory once more.
        images = torch.empty(len(self.files()), *self._shape(), dtype=torch.uint8)
        for row, (image,) in zip(images, self.batches(1), strict=True):
            row.copy_(image)
        return LabelledImages(images, None)

    def label_names(self) -> None:
        return None

    def _shape(self) -> tuple[int, int, int]:
        """(C, H, W) of all images by their headers."""
        return _common_shape(map(_shape_told, self.files()), self.folder)


def _read(path: Path) -> Tensor:
    return _decode(path.read_bytes(), path)


def _shape_told(path: Path) -> tuple[int, int, int]:
    """(C, H, W) of what `_read` returns, as the file's header tells it."""
    with path.open("rb") as file, _named_by(path, path.stat().st_size), Image.open(file) as image:
        return 1 if image.mode in (*GREY, *SIXTEEN_BITS) else 3, image.height, image.width


def _class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """The names of classes that the `datasets` library wrote beside a column; None where it wrote none."""
    info = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {})
    names = info.get("features", {}).get(column, {}).get("names")
    return None if names is None else tuple(names)


def _named(labels: Sequence[int], names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of labels 0, 1, ..., their numbers where there are no names."""
    return tuple(map(str, range(max(labels) + 1))) if names is None else names


def _decode(encoded: bytes, source: Path) -> Tensor:
    """One encoded image as (C, H, W) uint8; grey images have one channel, all others three.

    Of sixteen bits the higher eight count. Transparent pixels, whose colours are anything, are refused.
    """
    with _named_by(source, len(encoded or b"")), Image.open(io.BytesIO(encoded)) as image:
        opaque = not image.has_transparency_data or np.array(image.convert("RGBA"))[..., 3].min() == 255
        pixels = _pixels(image)
    if not opaque:
        raise ValueError(f"expected an opaque image, got transparent pixels in {source}; put it on a background first")
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


@contextmanager
def _named_by(source: Path, size: int) -> Iterator[None]:
    """Turns the errors of an encoded image of so many bytes within the context into one that names its file."""
    try:
        yield
    except (OSError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"expected an image that can be read in {source}, got {size} bytes that are none "
            f"({' '.join(str(error).split())[:200]}); remove it or fetch it again"
        ) from error


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in SIXTEEN_BITS:
        return (np.array(image).astype(np.int64).clip(0, 2**16 - 1) >> 8).astype(np.uint8)
    return np.array(image.convert("L" if image.mode in GREY else "RGB"))


def _stack(images: list[Tensor], folder: Path) -> Tensor:
    """(N, C, H, W) of images of one size; where some have colours, grey ones are repeated over the channels."""
    channels, _, _ = _common_shape(((len(image), *image.shape[1:]) for image in images), folder)
    return torch.stack([image.expand(channels, -1, -1) for image in images])


def _common_shape(shapes: Iterable[tuple[int, int, int]], folder: Path) -> tuple[int, int, int]:
    """(C, H, W) of images together, of which each has its own number of channels, and all have one size."""
    channels, heights, widths = zip(*shapes, strict=True)
    sizes = set(zip(heights, widths, strict=True))
    if len(sizes) > 1:
        raise ValueError(f"expected images of one size in {folder}, found {sorted(sizes)}; resize them first")
    return max(channels), heights[0], widths[0]
