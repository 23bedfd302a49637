"""A store as a table of 80 columns, as lines of CSV, and what is to be removed of it."""

import csv
import io
import time
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from ptq_diffusion.command.check.bounds import in_units
from ptq_diffusion.command.storage.shelf import Removal, Shelf
from ptq_diffusion.engine.inventory import RunNeeds, State, Stored

COLUMNS = ("stage", "signature", "state", "bytes", "age_seconds", "made_by", "needed_by")
SHOWN = 2
"""Runs of an artefact that are named; of more the others are counted."""
SIGNED = 17
"""Letters of the signature at the end of a run's folder, and the hyphen before it."""


def table(shelf: Shelf) -> Table:
    """A line for each artefact; a run that made it has a star."""
    sheet = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), caption_justify="left", expand=True)
    sheet.add_column("artefact", no_wrap=True)
    for name in ("size", "age"):
        sheet.add_column(name, justify="right", no_wrap=True)
    sheet.add_column("runs that need it", overflow="fold", ratio=1)
    for one in shelf.artefacts:
        stage, signature = one.key
        state = "" if one.state is State.COMPLETE else f"\n{one.state.value}"
        sheet.add_row(f"{stage}\n  {signature}{state}", in_units(one.size), _age(one), _runs(shelf.users[one.key], one))
    total, needed = (sum(one.size for one in group) for group in (shelf.artefacts, _needed(shelf)))
    summary = f"{in_units(total)}, {in_units(needed)} of them needed by {len(shelf.runs):,} runs"
    sheet.caption = f"{summary}; * made it; --csv names them all"
    return sheet


def csv_of(shelf: Shelf) -> str:
    """A line for each artefact; runs are separated by semicolons."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in shelf.artefacts:
        runs = shelf.users[one.key]
        made = [str(run.folder) for run in runs if one.key[1] in run.made]
        numbers = one.state.value, one.size, round(time.time() - one.since)
        writer.writerow([*one.key, *numbers, ";".join(made), ";".join(str(run.folder) for run in runs)])
    return text.getvalue()


def removals(removal: Removal) -> Iterator[str]:
    """A line for each thing that is to be removed, and one for all of it."""
    for one in removal.artefacts:
        yield f"{in_units(one.size):>10}  {_age(one):>5}  {'/'.join(one.key)}  {_why(one)}"
    yield from (f"{'lock':>10}         {lock.parent.name}" for lock in removal.locks)
    yield from (f"{'stays':>10}         {'/'.join(one.key)}, which a process is making" for one in removal.making)
    yield "nothing to remove" if removal.nothing else removal.text


def _why(one: Stored) -> str:
    return "needed by no run" if one.state is State.COMPLETE else f"{one.state.value}, its process is gone"


def _needed(shelf: Shelf) -> list[Stored]:
    return [one for one in shelf.artefacts if shelf.users[one.key]]


def _runs(runs: Sequence[RunNeeds], one: Stored) -> str:
    """The names of some runs, those that made the artefact first."""
    first = sorted(runs, key=lambda run: one.key[1] not in run.made)
    names = ["*" * (one.key[1] in run.made) + run.folder.name[:-SIGNED] for run in first]
    if len(names) > SHOWN:
        names[SHOWN - 1 :] = [f"and {len(names) - SHOWN + 1} more"]
    return "\n".join(names) or "none"


def _age(one: Stored) -> str:
    seconds = max(time.time() - one.since, 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
