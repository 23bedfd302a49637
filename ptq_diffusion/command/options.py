"""`ptq-diffusion options [GROUP | GROUP=NAME]`: describes the choices of a group and the options of a choice."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ptq_diffusion.command.refusal import closest

FIRST_LINE = re.compile(r"^# (?P<what>[^@].*):  (?P<command>.+)$", re.MULTILINE)
"""The line of every file that says what it is and which words choose it."""
INHERITED = re.compile(r"^  - (?P<name>\w+)$(?<!_self_)", re.MULTILINE)
"""An entry of a file's defaults that names another file of its group."""
USAGE = """usage: ptq-diffusion options [NAME ...]

Describes every choice of a group, such as correction, one of them with its
options, such as correction=auto, or every option of a part that belongs to no
group, such as runtime; without a NAME all groups and parts.
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
        file: what its file says below the first line, and those that it inherits from; empty where it is not shown.
    """

    name: str
    what: str
    command: str
    file: str = ""


def print_options(words: Sequence[str], conf: Path, console: Console | None = None) -> None:
    """Print the options of the named groups and parts, or of all.

    Args:
        words: names of groups, choices of them as GROUP=NAME, names of parts of the main file, or --help.
        conf: the folder of the configurations.
        console: where to.

    Raises:
        ValueError: there is no such group, choice or part.
    """
    console = console or Console()
    groups = sorted(folder.name for folder in conf.iterdir() if any(folder.glob("*.yaml")))
    parts = options_without_group(conf / "config.yaml")
    if {"--help", "-h"} & set(words):
        console.print(
            f"{USAGE}\ngroups: {', '.join(groups)}\n\nparts: {', '.join(parts)}", markup=False, highlight=False
        )
        return
    found = {word: list(_described(word, conf, groups, parts)) for word in words or (*groups, *parts)}
    for word, options in found.items():
        console.rule(word, align="left")
        for option in options:
            console.print(option.command, style="bold", markup=False, highlight=False)
            console.print(Padding(Text(option.what), (0, 0, 0, 4)))
            if option.file:  # YAML, which a broken line would change
                console.print(f"\n{indent(option.file, ' ' * 4)}", markup=False, highlight=False, soft_wrap=True)


def _described(word: str, conf: Path, groups: Sequence[str], parts: Mapping[str, Sequence[Option]]) -> Iterator[Option]:
    """The choices of the group and the options of the part that a word names, or the one choice with its file."""
    key, chosen, name = word.partition("=")
    group = key.lstrip("+").partition("@")[0] if chosen else key
    if group not in (groups if chosen else (*groups, *parts)):
        remedy = closest(word, [*groups, *parts], "ptq-diffusion options --help lists all")
        raise ValueError(f"expected a group, a choice of one as GROUP=NAME or a part, got {word!r}; {remedy}")
    choices = list(options_of(conf / group)) if group in groups else []
    if not chosen:
        yield from (*choices, *parts.get(word, ()))
        return
    names = [choice.name for choice in choices]
    if name not in names:
        remedy = closest(name, names, f"ptq-diffusion options {group} lists all")
        raise ValueError(f"expected a choice of {group}, got {name!r}; {remedy}")
    yield replace(choices[names.index(name)], file="\n\n".join(_texts(conf / group / f"{name}.yaml")))


def _texts(path: Path) -> Iterator[str]:
    """The text of a group's file below its first line, and behind it those of the files that it inherits from."""
    text = path.read_text()
    yield FIRST_LINE.sub("", text, count=1).replace("# @package _global_\n", "").strip()
    for parent in INHERITED.findall(text):
        first, *others = _texts(path.with_name(f"{parent}.yaml"))
        yield from (f"# inherited from {parent}\n{first}", *others)


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
