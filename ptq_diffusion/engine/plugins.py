"""Packages of the user's own, whose classes a configuration may name beside ours."""

import hashlib
import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig

from ptq_diffusion.engine.code.syntax import Syntax

PLUGINS = "plugins"
"""The option that names the packages; a part of a configuration that names classes of some has it too."""
OUR_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Plugin:
    """A package of the user's own.

    Args:
        name: that it is imported by.
        version: of the distribution that it was installed with; None of one that lies on the path.
        digest: sixteen hex digits over the names and the code of its Python files, without comments and docstrings.
        files: these Python files.
    """

    name: str
    version: str | None
    digest: str
    files: tuple[Path, ...]

    @classmethod
    @cache
    def of(cls, name: str) -> "Plugin":
        """The package of this name, as it was when this process first asked: its code is not imported again either.

        Raises:
            ValueError: there is no such package.
        """
        root = _root(name)
        files, digest = tuple(sorted(root.rglob("*.py"))), hashlib.sha256()
        for file in files:
            try:
                digest.update(f"{file.relative_to(root).as_posix()}\n{Syntax.of(file).text}\n".encode())
            except (SyntaxError, ValueError) as error:
                raise _refusal(name, f"a syntax error in {file} ({error})", "mend it there") from error
        distributions = packages_distributions().get(name)
        return cls(name, version(distributions[0]) if distributions else None, digest.hexdigest()[:16], files)

    @property
    def identity(self) -> dict[str, str | None]:
        """The fields that reports and signatures record."""
        return {"name": self.name, "version": self.version, "digest": self.digest}


def plugins_of(node: DictConfig) -> tuple[str, ...]:
    """The names of the packages that a configuration takes in, from any of its parts."""
    # A part alone would not say where it came from; the whole is found from it, in each process, without a global.
    root = node._get_root()
    names = root.get(PLUGINS) if isinstance(root, DictConfig) else None
    return tuple(map(str, names)) if names else ()


def owner(dotted: str, plugins: Iterable[str]) -> str | None:
    """The package of a dotted name, where it is one of these."""
    first = dotted.partition(".")[0]
    return first if first in plugins else None


def require_plugins(names: Sequence[str]) -> None:
    """Import packages, each in full.

    Raises:
        ValueError: one is none, is ours, or cannot be imported.
    """
    for name in names:
        Plugin.of(name)
        _imported(name, name)


def plugin_object(dotted: str) -> Any:  # noqa: ANN401
    """The object of a plugin that a dotted name stands for.

    Raises:
        ValueError: its module cannot be imported, or has no such name.
    """
    name, *parts = dotted.split(".")
    place: Any = _imported(name, name)
    for part in parts:
        module = f"{place.__name__}.{part}" if isinstance(place, ModuleType) and place.__spec__ is not None else None
        if module and place.__spec__.submodule_search_locations is not None and find_spec(module):
            place = _imported(module, name)
        elif (place := getattr(place, part, None)) is None:
            raise _refusal(name, f"no {part} where {dotted} names one", "mend the _target_ or the package")
    return place


def _imported(module: str, plugin: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    # A module runs any code, so it may raise any error.
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise _refusal(plugin, f"an error when {module} was imported ({text})", "mend it there") from error


def _root(name: str) -> Path:
    """The folder of a package."""
    if not name.isidentifier() or name == OUR_PACKAGE:
        raise _refusal(name, "another name", "give one word, such as plugins=[my_package]")
    spec = find_spec(name)
    if spec is None:
        raise _refusal(name, "none of this name", "pip install it, or put the folder around it on PYTHONPATH")
    if spec.origin is None or not spec.submodule_search_locations:
        place = spec.origin or f"a folder without __init__.py, {next(iter(spec.submodule_search_locations or ()), '')}"
        raise _refusal(name, place, "a package is a folder with __init__.py")
    return Path(spec.origin).parent


def _refusal(name: str, came: str, remedy: str) -> ValueError:
    return ValueError(
        f"expected the plugin {name} to be a package of your own that can be imported, got {came}; {remedy}"
    )
