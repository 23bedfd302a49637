"""The source that a result depends on: found by reading imports, without running any."""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path


class Package:
    """The modules of one package, as files that import each other. A file is parsed once, a closure digested once.

    An import leads to the file that defines the name. An `__init__` only passes names on, so it is looked through: a
    new module beside those that a file uses is no part of what that file depends on. Imports count wherever they stand,
    in functions too; relative ones are not used in this package (tests/test_floors.py).

    Args:
        root: the package's folder, which has its name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._bound: dict[Path, list[Mapping[str, str]]] = {}
        self._digests: dict[tuple[Path, ...], str] = {}

    def defining(self, dotted: str) -> Path | None:
        """The file that defines a name such as `package.folder.Class.method`; None outside of the package."""
        first, *parts = dotted.split(".")
        if first != self.root.name:
            return None
        folder = self.root
        for part in parts:
            if (folder / part / "__init__.py").is_file():
                folder /= part
            elif (folder / f"{part}.py").is_file():
                return folder / f"{part}.py"
            else:
                passed_on = self._passed_on(folder / "__init__.py").get(part, "")
                return self.defining(passed_on) or folder / "__init__.py"
        return folder / "__init__.py"

    def closure(self, starts: Iterable[Path]) -> frozenset[Path]:
        """The files `starts`, what they import of the package, what that imports, and so on."""
        found: set[Path] = set()
        waiting = list(starts)
        while waiting:
            file = waiting.pop()
            if file not in found:
                found.add(file)
                names = (name for names in self._imports(file) for name in names.values())
                waiting += [path for name in names if (path := self.defining(name))]
        return frozenset(found)

    def digest(self, starts: Iterable[Path]) -> str:
        """A digest of all source in the closure of `starts`, which may lie outside of the package."""
        key = tuple(starts)
        if key not in self._digests:
            digest = hashlib.sha256()
            named = {self._name(file): file for file in self.closure(key)}
            for name, file in sorted(named.items()):
                digest.update(f"{name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
            self._digests[key] = digest.hexdigest()
        return self._digests[key]

    def _name(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else f"/{file.name}"

    def _passed_on(self, file: Path) -> Mapping[str, str]:
        return {own: name for names in self._imports(file) for own, name in names.items()}

    def _imports(self, file: Path) -> Sequence[Mapping[str, str]]:
        """For every import the names that it binds and the dotted names that they stand for."""
        if file not in self._bound:
            self._bound[file] = list(_bindings(ast.parse(file.read_bytes())))
        return self._bound[file]


def _bindings(tree: ast.Module) -> Iterator[Mapping[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            yield {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}


OURS = Package(Path(__file__).parents[1])
