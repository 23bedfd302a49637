"""Captioned images on disk."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ptq_diffusion.data.file_source import broken_shard, parquet
from ptq_diffusion.data.images import ImageSource, LabelledImages, ParquetImages


class CaptionedImages(ImageSource):
    """Parquet shards with a column of captions; an image's label is the index of its caption, whose text is its name.

    Args:
        folder: the folder of the shards.
        split: which split, the first part of the shard's name.
        image_column: the column of `{bytes, path}` structs.
        caption_column: the column of texts.
        without: images whose caption contains one of these texts are left out.
    """

    def __init__(
        self,
        folder: str,
        split: str = "train",
        image_column: str = "image",
        caption_column: str = "caption",
        without: Sequence[str] = ("skin tone",),
    ) -> None:
        self.images = ParquetImages(folder, split, image_column, None)
        self.caption_column, self.without = caption_column, tuple(without)

    def files(self) -> list[Path]:
        return self.images.files()

    def load(self) -> LabelledImages:
        """Read everything into memory.

        Raises:
            ValueError: beside what reading images raises, the column is missing or is no text, or nothing is left.
        """
        rows, captions, names = self._kept()
        index = {name: label for label, name in enumerate(names)}
        labels = torch.tensor([index[caption] for caption in captions])
        return LabelledImages(self.images.load().images[rows], labels, names)

    def label_names(self) -> tuple[str, ...]:
        return self._kept()[2]

    def _kept(self) -> tuple[list[int], list[str], tuple[str, ...]]:
        """The rows of images that are not left out, the caption of each, and all captions, each once and sorted."""
        captions = [caption for shard in self.files() for caption in self._captions(shard)]
        rows = [row for row, caption in enumerate(captions) if not any(text in caption for text in self.without)]
        if not rows:
            raise ValueError(f"expected images whose captions lack {', '.join(self.without)}, found none; set without")
        kept = [captions[row] for row in rows]
        return rows, kept, tuple(sorted(set(kept)))

    def _captions(self, shard: Path) -> list[str]:
        reader, broken = parquet(), broken_shard()
        try:
            captions = reader.read_table(shard, columns=[self.caption_column])[self.caption_column].to_pylist()
        except (broken, KeyError) as error:
            raise ValueError(
                f"expected a column {self.caption_column} in {shard}, got {' '.join(str(error).split())[:300]}; set "
                "data.caption_column"
            ) from error
        if not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"expected texts in {self.caption_column} of {shard}, got others; set data.caption_column")
        return captions
