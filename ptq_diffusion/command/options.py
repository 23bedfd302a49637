"""`ptq-diffusion options [GROUP]`: describes every option of a group in the words of its file."""

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


@dataclass(frozen=True)
class Option:
    """A file of a group.

    Args:
        name: as in GROUP=NAME.
        what: it is.
        command: the words that choose it.
    """

    name: str
    what: str
    command: str


def print_options(words: Sequence[str], conf: Path, console: Console | None = None) -> None:
    """Print the options of the named groups, or of all groups.

    Args:
        words: names of groups.
        conf: the folder of the configurations.
        console: where to.

    Raises:
        ValueError: there is no such group.
    """
    groups = sorted(folder.name for folder in conf.iterdir() if any(folder.glob("*.yaml")))
    for word in words:
        if word not in groups:
            raise ValueError(f"expected a group, got {word!r}; {closest(word, groups)}")
    console = console or Console()
    for group in words or groups:
        console.rule(group, align="left")
        for option in options_of(conf / group):
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
