"""A file imports its own folder and lower floors, never a sibling or a higher one; and it is small enough to read."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "ptq_diffusion"
ROOT = Path(__file__).parents[1] / PACKAGE
FLOORS = {
    "numeric": 0,
    "artefact": 0,
    "quantizer": 1,
    "model": 1,
    "sampler": 1,
    "data": 1,
    "bitwidth": 2,
    "network": 2,
    "rounding": 3,
    "correction": 3,
    "metric": 3,
    "engine": 4,
    "stage": 5,
    "report": 6,
    "command": 7,
}
# The modules of the package's root: the entry point, the version, and the names of command/python.py passed on. No
# floor may import them, so none can come back to itself through `import ptq_diffusion`.
TOP = 8
GROUND_FLOOR_LIBRARIES = {PACKAGE, "numpy", "safetensors", "torch"} | sys.stdlib_module_names
LONGEST_FUNCTION, LONGEST_FILE, LARGEST_FOLDER = 40, 300, 20  # lines, lines, Python files
RIDDLES = ("What ", "Of ", "Those ", "Which ")  # a first line that says neither what a thing is nor what it does
NOT_A_NOUN = {"utils", "util", "common", "core", "helpers", "helper", "misc"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; a relative one begins with a dot.

    `from a import b` gives `a.b`: only the second part of a name of this package matters, and both forms have it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def complaint(name: str, folder: str) -> str | None:
    """What is wrong with importing `name` in a file of `folder`, or None; the root's folder is ''."""
    if name.startswith("."):
        return f"relative import of {name}; write the full name"
    library, _, rest = name.partition(".")
    floor = FLOORS.get(folder, TOP)
    if floor == 0 and library not in GROUND_FLOOR_LIBRARIES:
        return f"floor 0 imports {library}; it knows torch, numpy, safetensors and the standard library only"
    if library != PACKAGE or rest == "__version__":
        return None
    head = rest.split(".")[0]
    target = head if head in FLOORS else ""
    if target == folder or FLOORS.get(target, TOP) < floor:
        return None
    return f"{folder} (floor {floor}) imports {target or 'the root'} (floor {FLOORS.get(target, TOP)})"


def violations(root: Path) -> list[str]:
    """One line for each broken rule in the package at `root`."""
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        folder = parts[0] if len(parts) > 1 else ""
        if folder and folder not in FLOORS:
            found.append(f"{'/'.join(parts)}: folder {folder} has no floor; choose one in FLOORS")
            continue
        found += [f"{'/'.join(parts)}: {part} is no noun" for part in parts if part.removesuffix(".py") in NOT_A_NOUN]
        for line, name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if wrong := complaint(name, folder):
                found.append(f"{'/'.join(parts)}:{line}: {wrong}")
    return found


def documented(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, docstring) of the module, of every class and function, and of every constant or field described below."""
    for node in ast.walk(tree):
        body = getattr(node, "body", ())
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def excesses(root: Path) -> list[str]:
    """One line for each function, file and folder below `root` that is too long."""
    lines = []
    for path in sorted(root.rglob("*.py")):
        source, place = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        tree = ast.parse(source)
        if (length := source.count("\n")) > LONGEST_FILE:
            lines.append(f"{place}: a file of {length} lines; split it along a noun")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    lines.append(f"{place}:{node.lineno}: {node.name} of {length} lines; split it along a noun")
    for folder in sorted({path.parent for path in root.rglob("*.py")}):
        if (count := len(list(folder.glob("*.py")))) > LARGEST_FOLDER:
            lines.append(f"{folder.relative_to(root).as_posix()}: a folder of {count} files; split it along a noun")
    return lines


def riddles(root: Path) -> list[str]:
    """One line for each docstring below `root` whose first line says neither what a thing is nor what it does."""
    return [
        f"{path.relative_to(root).as_posix()}:{line}: a riddle, {text.splitlines()[0]!r}; say what it is or does"
        for path in sorted(root.rglob("*.py"))
        for line, text in documented(ast.parse(path.read_text(encoding="utf-8")))
        if text.startswith(RIDDLES)
    ]


def test_every_file_keeps_to_its_floor() -> None:
    assert len(list(ROOT.rglob("*.py"))) > 10
    assert violations(ROOT) == []


@pytest.mark.parametrize("root", [PACKAGE, "tests", "experiments"])
def test_every_function_file_and_folder_is_small(root: str) -> None:
    assert list((ROOT.parent / root).rglob("*.py"))
    assert excesses(ROOT.parent / root) == []


def test_every_docstring_says_what_a_thing_is_or_does() -> None:
    assert riddles(ROOT) == []


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in ROOT.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_conf_holds_no_code() -> None:
    assert list((ROOT.parent / "conf").rglob("*.py")) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("numeric/a.py", "from ptq_diffusion.quantizer import b", "numeric (floor 0) imports quantizer (floor 1)"),
        ("numeric/a.py", "import omegaconf.base", "floor 0 imports omegaconf"),
        ("quantizer/a.py", "from ptq_diffusion.model.b import c", "quantizer (floor 1) imports model (floor 1)"),
        ("network/a.py", "import ptq_diffusion.bitwidth", "network (floor 2) imports bitwidth (floor 2)"),
        ("metric/a.py", "from ptq_diffusion import stage", "metric (floor 3) imports stage (floor 5)"),
        ("model/a.py", "from ptq_diffusion.main import main", "model (floor 1) imports the root (floor 8)"),
        ("model/a.py", "import ptq_diffusion", "model (floor 1) imports the root (floor 8)"),
        ("report/a.py", "from ptq_diffusion import compose", "report (floor 6) imports the root (floor 8)"),
        ("stage/a.py", "def late():\n    from . import b", "relative import of ..b"),
        ("sampler/deep/a.py", "if True:\n    import ptq_diffusion.stage", "sampler (floor 1) imports stage (floor 5)"),
        ("helpers/a.py", "", "folder helpers has no floor"),
        ("metric/utils.py", "", "utils.py is no noun"),
        ("metric/misc/a.py", "", "misc is no noun"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, source: str, expected: str) -> None:
    planted = tmp_path / path
    planted.parent.mkdir(parents=True)
    planted.write_text(source)
    (line,) = violations(tmp_path)
    assert line.startswith(path)
    assert expected in line


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("numeric/a.py", "import math, torch\nfrom numpy.typing import NDArray\nfrom ptq_diffusion.numeric.b import c"),
        (
            "network/a.py",
            "from ptq_diffusion.quantizer import b\nfrom ptq_diffusion.network.c import d\nimport diffusers",
        ),
        ("stage/a.py", "from ptq_diffusion import __version__, metric"),
        ("main.py", "import ptq_diffusion.stage"),
        ("__main__.py", "from ptq_diffusion.main import main"),
        ("__init__.py", "def __getattr__(name):\n    from ptq_diffusion.command import python"),
    ],
)
def test_an_allowed_import_is_no_violation(tmp_path: Path, path: str, source: str) -> None:
    allowed = tmp_path / path
    allowed.parent.mkdir(exist_ok=True)
    allowed.write_text(source)
    assert violations(tmp_path) == []


def function(lines: int) -> str:
    """The source of a function of so many lines."""
    return "def f():\n" + "    x = 1\n" * (lines - 1)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.py": "x = 1\n" + function(LONGEST_FUNCTION + 1)}, "a.py:2: f of 41 lines"),
        ({"a.py": f"class A:\n    {function(41).replace(chr(10), chr(10) + '    ')}"}, "a.py:2: f of 41 lines"),
        ({"a.py": "x = 1\n" * (LONGEST_FILE + 1)}, "a.py: a file of 301 lines"),
        ({f"deep/{i}.py": "" for i in range(LARGEST_FOLDER + 1)}, "deep: a folder of 21 files"),
        ({"a.py": '"""What it is."""'}, "a.py:1: a riddle, 'What it is.'"),
        ({"a.py": 'class A:\n    """Of a batch.\n\n    More.\n    """'}, "a.py:2: a riddle, 'Of a batch.'"),
        ({"a.py": 'async def f():\n    """Those that are left."""'}, "a.py:2: a riddle"),
        ({"a.py": 'class A:\n    x = 1\n    """Which it is."""'}, "a.py:3: a riddle"),
        ({"a.py": 'X = 1\n"""Of the format."""'}, "a.py:2: a riddle"),
    ],
)
def test_a_planted_excess_is_found(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    (line,) = excesses(tmp_path) + riddles(tmp_path)
    assert line.startswith(expected)


def test_the_limits_themselves_are_no_excess(tmp_path: Path) -> None:
    for i in range(LARGEST_FOLDER):
        (tmp_path / f"{i}.py").write_text('"""Whatever it is."""\n' + function(LONGEST_FUNCTION) + "x = 1\n" * 259)
    assert len((tmp_path / "0.py").read_text().splitlines()) == LONGEST_FILE
    assert excesses(tmp_path) == []
