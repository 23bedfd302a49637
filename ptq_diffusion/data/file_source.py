"""The base of all sources of data, which are files; and shards of parquet among them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ptq_diffusion.artefact.digest import files_digest


class FileSource(ABC):
    """A source that reads files."""

    @abstractmethod
    def files(self) -> list[Path]:
        """The files that are read, sorted.

        Raises:
            FileNotFoundError: there is none.
        """

    def checksum(self) -> str:
        """Sixteen hex digits over the files' contents."""
        return files_digest(self.files())


def find_shards(folder: Path, split: str, remedy: str) -> list[Path]:
    """The shards of a split as the `datasets` library writes them, `<split>-*.parquet`, sorted.

    Args:
        folder: that holds them.
        split: the first part of their names.
        remedy: what to do where there is none.

    Raises:
        FileNotFoundError: there is none.
    """
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    if not shards:
        raise FileNotFoundError(f"expected {split}-*.parquet in {folder}, found none; {remedy}")
    return shards


def parquet() -> Any:  # noqa: ANN401
    """The module `pyarrow.parquet`.

    Raises:
        ImportError: pyarrow is not installed; the message names the extra.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading parquet needs pyarrow: pip install '.[data]'") from error
    return pyarrow.parquet


def broken_shard() -> type[Exception]:
    """The error of pyarrow at a file or a column that it cannot read, see `parquet`."""
    from pyarrow import ArrowException

    kind: type[Exception] = ArrowException
    return kind
