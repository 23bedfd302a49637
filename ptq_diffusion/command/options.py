"""`ptq-diffusion options [GROUP]`: describes every option of a group, or of none, in the words of its file."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ptq_diffusion.command.refusal import closest

FIRST_LINE = re.compile(r"^# (?P<what>[^@].*):  (?P<command>.+)$", re.MULTILINE)
"""The line of every file that says what it is and which words choose it."""


USAGE = """usage: ptq-diffusion options [NAME ...]

Describes every option of a group, such as correction, or of a part that belongs
to no group, such as runtime; without a NAME of all.
"""
WITHOUT_WORDS = ("defaults", "labels", "hydra")
"""Parts of the main file that are no options of an experiment."""
LINE = re.compile(r"^(?P<space> *)(?:# ?(?P<comment>.*)|(?P<key>\w+):(?: (?P<value>.+))?)$")


@dataclass(frozen=True)
class Option:
    """A file of a group.

    Args:
        name: as in GROUP=NAME; of an option outside of groups its dotted name.
        what: it is.
        command: the words that choose it.
    """

    name: str
    what: str
    command: str


def print_options(words: Sequence[str], conf: Path, console: Console | None = None) -> None:
    """Print the options of the named groups and parts, or of all.

    Args:
        words: names of groups, of parts of the main file, or --help.
        conf: the folder of the configurations.
        console: where to.

    Raises:
        ValueError: there is no such group or part.
    """
    console = console or Console()
    groups = sorted(folder.name for folder in conf.iterdir() if any(folder.glob("*.yaml")))
    parts = options_without_group(conf / "config.yaml")
    if {"--help", "-h"} & set(words):
        console.print(
            f"{USAGE}\ngroups: {', '.join(groups)}\n\nparts: {', '.join(parts)}", markup=False, highlight=False
        )
        return
    for word in words:
        if word not in (*groups, *parts):
            remedy = closest(word, [*groups, *parts], "ptq-diffusion options --help lists all")
            raise ValueError(f"expected a group or a part, got {word!r}; {remedy}")
    for name in words or (*groups, *parts):
        console.rule(name, align="left")
        for option in (*(options_of(conf / name) if name in groups else ()), *parts.get(name, ())):
            console.print(option.command, style="bold", markup=False, highlight=False)
            console.print(Padding(Text(option.what), (0, 0, 0, 4)))


def options_of(group: Path) -> Iterator[Option]:
    """The files of a group, by name.

    Raises:
        ValueError: a file does not say what it is.
    """
    for path in sorted(group.glob("*.yaml")):
        match = FIRST_LINE.search(path.read_text())
        if match is None:
            raise ValueError(f"expected a line '# WHAT IT IS:  HOW TO CHOOSE IT' in {path}, got none; add it")
        yield Option(path.stem, match["what"], match["command"])


def options_without_group(path: Path) -> dict[str, list[Option]]:
    """The options of the main file by its parts, such as runtime or images.

    An option is described by the comment above it; one without by that of its part.
    """
    parts: dict[str, list[Option]] = {}
    part, comments, heading = "", [""], ""
    for line in path.read_text().splitlines():
        match = LINE.match(line)
        if match is None or match["comment"] is not None:
            comments = [] if match is None else [*comments, match["comment"]]
            continue
        name, what = match["key"], " ".join(comments)
        comments = []
        if not match["space"]:
            part, heading = name, what
        elif part in WITHOUT_WORDS or len(match["space"]) > 2:
            continue
        if part not in WITHOUT_WORDS and match["value"]:
            dotted = part if name == part and not match["space"] else f"{part}.{name}"
            value = match["value"].replace(", ", ",")
            parts.setdefault(part, []).append(Option(dotted, what or heading, f"{dotted}={value}"))
    return parts
