"""Folders that come with the package, by name."""

from dataclasses import dataclass
from pathlib import Path

PREFIX, CARD = "bundled:", "README.md"


@dataclass(frozen=True)
class Bundles:
    """Folders that come with the package, each with its card; `bundled:NAME` may stand where a path may.

    Args:
        home: the folder that holds them.
    """

    home: Path

    def names(self) -> list[str]:
        """Every `bundled:NAME` that there is, in order."""
        return sorted(f"{PREFIX}{card.parent.name}" for card in self.home.glob(f"*/{CARD}"))

    def path(self, path: str, file: str = "") -> Path:
        """A path as it is; of `bundled:NAME` the folder of that name, or a file of it.

        Raises:
            ValueError: nothing of this name comes with the package, or it is no path.
        """
        if path in self.names():
            return self.home / path.removeprefix(PREFIX) / file
        if not isinstance(path, str) or path.startswith(PREFIX):
            raise ValueError(f"expected a path, or one of {', '.join(self.names())}, got {path!r}")
        return Path(path)
