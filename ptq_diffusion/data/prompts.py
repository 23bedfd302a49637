"""Prompts that samples are drawn with: texts in their order, from a text file or the captions of a data set."""

from abc import abstractmethod
from pathlib import Path

from ptq_diffusion.artefact.bundle import Bundles
from ptq_diffusion.data.file_source import FileSource, broken_shard, find_shards, parquet

TEXTS = Bundles(Path(__file__).parent / "texts")
"""Prompts that come with the package."""

FIRST = {"images": 0.0, "noise": 0.5, "trial": 0.75, "calibration": 0.875}
"""The share of a source where the prompts of a purpose begin: images are drawn of others than were fitted on, as far as
there are enough."""


def prompt_number(index: int, purpose: str, count: int) -> int:
    """The number of a sample's prompt among `count`: number j of sample j of the images, of every seed.

    Prompts repeat in order where there are fewer than samples.

    Args:
        index: of the sample.
        purpose: what it is for: images, noise, trial or calibration.
        count: of prompts.
    """
    return (int(FIRST[purpose] * count) + index) % count


class Prompts(FileSource):
    """A source of prompts, of which each sample has one, see `prompt_number`."""

    @abstractmethod
    def texts(self) -> list[str]:
        """All prompts in order, at least one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is broken or holds no prompt.
        """


class TextPrompts(Prompts):
    """A text file of UTF-8 with one prompt a line; empty lines are left out.

    Args:
        path: the file, or `bundled:NAME` of prompts that come with the package.
    """

    def __init__(self, path: str) -> None:
        self.path = TEXTS.path(path, "prompts.txt")

    def files(self) -> list[Path]:
        if not self.path.is_file():
            raise FileNotFoundError(
                f"expected a text file with one prompt a line, there is no file {self.path}; set condition.source.path"
            )
        return [self.path]

    def texts(self) -> list[str]:
        (file,) = self.files()
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"expected a text file of UTF-8, got {file} ({error}); save it as UTF-8") from error
        return _some([line.strip() for line in lines if line.strip()], file)


class CaptionPrompts(Prompts):
    """The captions of parquet shards as the `datasets` library writes them, `<split>-*.parquet`.

    Args:
        folder: the folder of the shards.
        split: the first part of the shards' names.
        column: the column of texts.
    """

    def __init__(self, folder: str, split: str, column: str) -> None:
        self.folder, self.split, self.column = Path(folder), split, column

    def files(self) -> list[Path]:
        return find_shards(self.folder, self.split, "set condition.source.folder and condition.source.split")

    def texts(self) -> list[str]:
        reader, broken = parquet(), broken_shard()
        captions: list[str] = []
        for shard in self.files():
            try:
                cells = reader.read_table(shard, columns=[self.column])[self.column].to_pylist()
                captions += [" ".join(cell.split()) for cell in cells]
            except (broken, AttributeError, KeyError) as error:
                raise ValueError(
                    f"expected parquet with texts in the column {self.column} in {shard}, got another or a broken file "
                    f"({' '.join(str(error).split())[:300]}); set condition.source.column"
                ) from error
        return _some([caption for caption in captions if caption], self.folder)


def _some(texts: list[str], source: Path) -> list[str]:
    if not texts:
        raise ValueError(f"expected at least one prompt in {source}, got none; write one prompt a line")
    return texts
