"""The source that a result depends on: found by reading definitions and imports, without running any."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ptq_diffusion.engine.code.syntax import WHOLE, References, Syntax

NEUTRAL = ("artefact/", "engine/")
"""Folders whose files change no number: how artefacts are made, kept and found, not what is in them."""
NUMERIC = ("engine/chunks.py", "engine/conditions.py", "engine/workshop.py")
"""Files in these folders that say how numbers are computed after all."""
CALLED = {
    **dict.fromkeys(("ABC", "Enum", "Generic", "NamedTuple", "Protocol", "Sequence"), frozenset[str]()),
    "Module": frozenset({"_apply", "extra_repr", "forward", "get_extra_state", "set_extra_state"}),
}
"""Methods that classes from outside of the package call by themselves, beside those that are written `__name__`."""


@dataclass(frozen=True, order=True)
class Definition:
    """A name and the file that defines it: a function, a class, `Class.method` or a constant."""

    file: Path
    name: str


@dataclass(frozen=True)
class OutgoingReferences:
    """The outgoing references of a definition, which `Package.closure` follows.

    Args:
        named: the definitions that its names stand for, and methods called as `Class.method`.
        words: attribute names that it reads, other than `Class.attribute`: each may call a method of that name.
        called: its own methods that are always reached, such as `__init__`.
        methods: all its own methods, by name.
    """

    named: frozenset[Definition]
    words: frozenset[str]
    called: frozenset[Definition]
    methods: Mapping[str, Definition]


class Package:
    """The modules of one package, as definitions that refer to each other. A file is parsed once.

    A closure holds what code may run: a definition leads to those that its names stand for, across imports, wherever
    they stand. A method is reached with its class when its name follows a dot anywhere in the closure, other than the
    dot behind another class, or when a base class from outside of the package may call it. An `__init__` only passes
    names on, so it is looked through. Annotations lead nowhere. Relative imports are not used in this package
    (tests/test_floors.py).

    Args:
        root: the package's folder, which has its name.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._syntax: dict[Path, Syntax] = {}
        self._references: dict[Definition, References] = {}
        # Closures of all stages of all configurations meet the same definitions.
        self._outgoing: dict[Definition, OutgoingReferences] = {}
        self._standing: dict[tuple[Path, str], tuple[Definition, ...]] = {}
        self._closures: dict[tuple[frozenset[Definition], ...], dict[frozenset[str], frozenset[Definition]]] = {}
        self._digests: dict[frozenset[Definition], str] = {}
        self._defining: dict[str, Definition | None] = {}
        self._names: dict[Path, str] = {}

    def defining(self, dotted: str) -> Definition | None:
        """The definition of a name such as `package.folder.Class`, or of all of a file; None outside of the package."""
        if dotted not in self._defining:
            self._defining[dotted] = self._found(dotted)
        return self._defining[dotted]

    def _found(self, dotted: str) -> Definition | None:
        first, *parts = dotted.split(".")
        if first != self.root.name:
            return None
        folder = self.root
        for place, part in enumerate(parts):
            if (folder / part / "__init__.py").is_file():
                folder /= part
            elif (folder / f"{part}.py").is_file():
                return self._defined(folder / f"{part}.py", *parts[place + 1 : place + 2])
            else:
                passed_on = self.syntax(folder / "__init__.py").imports.get(part, "")
                return self.defining(passed_on) or Definition(folder / "__init__.py", part)
        return Definition(folder / "__init__.py", WHOLE)

    def _defined(self, file: Path, name: str = WHOLE) -> Definition:
        """A name of a file, which may have imported it."""
        syntax = self.syntax(file)
        passed_on = None if name in syntax.definitions else self.defining(syntax.imports.get(name, ""))
        return passed_on or Definition(file, name)

    def closure(
        self, starts: Iterable[Definition], methods: Collection[str] = (), without: Collection[Definition] = ()
    ) -> frozenset[Definition]:
        """The definitions that may run when the given ones do.

        Args:
            starts: the given definitions.
            methods: the methods that are called first.
            without: definitions that no name leads to.
        """
        beginning, outside, called = frozenset(starts), frozenset(without), frozenset(methods)
        known = self._closures.setdefault((beginning, outside), {})
        if called not in known:
            known[called] = self._reached(beginning, called, outside)
        return known[called]

    def _reached(
        self, starts: frozenset[Definition], methods: frozenset[str], without: frozenset[Definition]
    ) -> frozenset[Definition]:
        reached, waiting = set[Definition](), set(starts)
        words, owned = set(methods), defaultdict[str, set[Definition]](set)
        while waiting:
            reached |= waiting
            fresh, named = set[str](), set[Definition]()
            for references in map(self.outgoing, waiting):
                fresh |= references.words - words
                named |= references.named | references.called
                for word, method in references.methods.items():
                    owned[word].add(method)
                    named |= {method} if word in words else set()
            words |= fresh
            named = named.union(*(owned[word] for word in fresh & owned.keys()))
            waiting = {definition for definition in named - reached if not self._neutral(definition.file)} - without
        return frozenset(reached)

    def digest(self, closure: frozenset[Definition]) -> str:
        """A digest of all files of a closure, without comments and docstrings.

        A file counts as a whole, also where only a part of it was reached: so nothing is missed that reading overlooks.
        """
        if closure not in self._digests:
            self._digests[closure] = self._digest(closure)
        return self._digests[closure]

    def _digest(self, closure: frozenset[Definition]) -> str:
        digest = hashlib.sha256()
        named = {self._name(definition.file): definition.file for definition in closure}
        for name, file in sorted(named.items()):
            digest.update(f"{name}\n{self.syntax(file).text}\n".encode())
        return digest.hexdigest()

    def within(self, file: Path) -> list[Definition]:
        """All definitions of a file, which may lie outside of the package."""
        return [Definition(file, name) for name in self.syntax(file).definitions]

    def syntax(self, file: Path) -> Syntax:
        """The parsed file."""
        if file not in self._syntax:
            self._syntax[file] = Syntax.of(file)
        return self._syntax[file]

    def outgoing(self, definition: Definition) -> OutgoingReferences:
        """The definitions and words that a definition leads to, read once."""
        if definition not in self._outgoing:
            named, words = frozenset(self._named_in(definition)), frozenset(self._words_in(definition))
            methods = self.syntax(definition.file).methods(definition.name)
            owned = {method: Definition(definition.file, name) for method, name in methods.items()}
            called = frozenset(owned[method] for method in self._called(definition, methods))
            self._outgoing[definition] = OutgoingReferences(named, words, called, owned)
        return self._outgoing[definition]

    def references(self, definition: Definition) -> References:
        """The words of a definition, with those of what its file does beside defining names."""
        if definition not in self._references:
            definitions = self.syntax(definition.file).definitions
            nodes = [*definitions.get(definition.name, ()), *definitions[WHOLE]]
            self._references[definition] = References.of(nodes)
        return self._references[definition]

    def _named_in(self, definition: Definition) -> Iterator[Definition]:
        """Definitions that names within a definition stand for, and methods called as `Class.method`."""
        references = self.references(definition)
        for name in (*references.names, *(name for name, _ in references.members)):
            yield from self._named(definition.file, name)
        for name, word in references.members:
            for owner in self._classes(definition.file, name):
                yield from self._inherited(owner, word)

    def _words_in(self, definition: Definition) -> Iterator[str]:
        """The words of a definition that follow a dot, but for those that follow the name of a class."""
        references = self.references(definition)
        yield from references.attributes
        yield from (word for name, word in references.members if not self._classes(definition.file, name))

    def _classes(self, file: Path, name: str) -> list[Definition]:
        return [found for found in self._named(file, name) if found.name in self.syntax(found.file).bases]

    def _inherited(self, owner: Definition, word: str) -> Iterator[Definition]:
        """The method of this name that a class has or inherits within the package."""
        if word in (methods := self.syntax(owner.file).methods(owner.name)):
            yield Definition(owner.file, methods[word])
        else:
            for base in self.syntax(owner.file).bases[owner.name]:
                for parent in self._classes(owner.file, base):
                    yield from self._inherited(parent, word)

    def _named(self, file: Path, name: str) -> tuple[Definition, ...]:
        """Definitions of the package that a name in a file stands for, looked up once."""
        if (file, name) not in self._standing:
            self._standing[file, name] = tuple(self._looked_up(file, name))
        return self._standing[file, name]

    def _looked_up(self, file: Path, name: str) -> Iterator[Definition]:
        syntax = self.syntax(file)
        if name in syntax.definitions and name != WHOLE:
            yield Definition(file, name)
            return
        # `import a.b` makes b available where a is named.
        imports = (dotted for bound, dotted in syntax.imports.items() if bound == name or bound.startswith(f"{name}."))
        for found in map(self.defining, imports):
            if found is not None:
                names = self.syntax(found.file).definitions if found.name == WHOLE else [found.name]
                yield from (Definition(found.file, each) for each in names)

    def _called(self, definition: Definition, methods: Collection[str]) -> Iterator[str]:
        """The methods of a class that are called whatever the words: by Python, or by a base class from outside."""
        outside = self._outside(definition) if methods else frozenset()
        for method in methods:
            special = method.startswith("__") and method.endswith("__")
            if special or any(method in CALLED.get(base, methods) for base in outside):
                yield method

    def _outside(self, definition: Definition) -> frozenset[str]:
        """The base classes of a class that are defined outside of the package, those of its bases included."""
        outside: set[str] = set()
        for base in self.syntax(definition.file).bases.get(definition.name, ()):
            ours = list(self._named(definition.file, base))
            outside |= {name for parent in ours for name in self._outside(parent)} if ours else {base}
        return frozenset(outside)

    def _neutral(self, file: Path) -> bool:
        name = self._name(file)
        return name.startswith(NEUTRAL) and name not in NUMERIC

    def _name(self, file: Path) -> str:
        if file not in self._names:
            within = file.is_relative_to(self.root)
            self._names[file] = file.relative_to(self.root).as_posix() if within else f"/{file.name}"
        return self._names[file]


OURS = Package(Path(__file__).parents[2])
