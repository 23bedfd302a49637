"""Syntax of one source file: what it defines, what its definitions refer to, and its text without comments."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
WHOLE = ""
"""The name of what a file does beside defining names."""


@dataclass(frozen=True)
class References:
    """Words of some code that may stand for something else.

    Args:
        names: that are read, or bound by an import.
        attributes: words that follow a dot.
        members: pairs of a name and the word that follows it and a dot, which are in neither of the others.
    """

    names: frozenset[str]
    attributes: frozenset[str]
    members: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, nodes: Sequence[ast.AST]) -> "References":
        """All words within some nodes; annotations are left out, which nothing computes with."""
        names, attributes, members = set(), set(), set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                members.add((node.value.id, node.attr))
                continue
            elif isinstance(node, ast.Attribute):
                attributes.add(node.attr)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names |= set(_bindings(node))
            waiting += _parts(node)
        return cls(frozenset(names), frozenset(attributes), frozenset(members))


@dataclass(frozen=True)
class Syntax:
    """A parsed file.

    Args:
        tree: of the file, without docstrings.
    """

    tree: ast.Module

    @classmethod
    def of(cls, file: Path) -> "Syntax":
        """Parse a file; comments are gone, and so are strings that stand alone, which describe what is beside them."""
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            for block in ("body", "orelse", "finalbody"):
                statements = getattr(node, block, None)
                if isinstance(statements, list):
                    setattr(node, block, [statement for statement in statements if not _describes(statement)])
        return cls(tree)

    @cached_property
    def text(self) -> str:
        """The code in a form that comments, docstrings and line breaks do not change."""
        return ast.dump(self.tree)

    @cached_property
    def imports(self) -> Mapping[str, str]:
        """The names that imports bind, also those within functions, and the dotted names that they stand for."""
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.Import | ast.ImportFrom))
        return {name: dotted for node in nodes for name, dotted in _bindings(node).items()}

    @cached_property
    def definitions(self) -> Mapping[str, Sequence[ast.AST]]:
        """The statements that define each name; those that define none have the name `WHOLE`.

        A method is a definition of its own, named `Class.method`; the rest of its class is that of the class.
        """
        found: dict[str, list[ast.AST]] = {WHOLE: []}
        for statement in self.tree.body:
            if isinstance(statement, ast.ClassDef):
                found[statement.name] = [*_without_methods(statement)]
                for method in _methods(statement):
                    found.setdefault(f"{statement.name}.{method.name}", []).append(method)
            elif not isinstance(statement, ast.Import | ast.ImportFrom):
                for name in _defined(statement):
                    found.setdefault(name, []).append(statement)
        return found

    @cached_property
    def bases(self) -> Mapping[str, Sequence[str]]:
        """The last words of the base classes of every class, such as Module for `nn.Module`."""
        classes = (statement for statement in self.tree.body if isinstance(statement, ast.ClassDef))
        return {node.name: [_last_word(base) for base in node.bases] for node in classes}

    def methods(self, name: str) -> Mapping[str, str]:
        """From the methods of a class to their definitions; empty of what is no class."""
        prefix = f"{name}."
        return {found.removeprefix(prefix): found for found in self.definitions if found.startswith(prefix)}


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node, without annotations."""
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns"):
            yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, ast.AST))


def _bindings(node: ast.Import | ast.ImportFrom) -> Mapping[str, str]:
    """The names that an import binds; `import a.b` binds a, and stands for a.b, of which all is taken."""
    prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return {alias.asname or alias.name: f"{prefix}{alias.name}" for alias in node.names}


def _describes(statement: ast.AST) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _methods(node: ast.ClassDef) -> list[Function]:
    return [statement for statement in node.body if isinstance(statement, Function)]


def _without_methods(node: ast.ClassDef) -> Iterator[ast.AST]:
    yield from (*node.decorator_list, *node.bases, *node.keywords)
    yield from (statement for statement in node.body if not isinstance(statement, Function))


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a statement defines, or `WHOLE`."""
    if isinstance(statement, Function):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    names = [node.id for target in targets if target for node in ast.walk(target) if isinstance(node, ast.Name)]
    return names or [WHOLE]


def _last_word(base: ast.expr) -> str:
    """The last word of a dotted name, without type arguments."""
    if isinstance(base, ast.Subscript):
        return _last_word(base.value)
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
