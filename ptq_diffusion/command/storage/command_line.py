"""`ptq-diffusion store [prune] [FOLDER ...]`: lists the artefacts of a store, and removes what no run needs."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

EXAMPLES = """examples:
  ptq-diffusion store                                   every artefact, its size, its age, and the runs that need it
  ptq-diffusion store prune                             removes what no run below outputs/runs needs, asks first
  ptq-diffusion store prune outputs/runs/league --yes   keeps what these runs need, asks nothing
  ptq-diffusion store prune --unfinished                and what killed processes had begun, which runs would go on from
  ptq-diffusion store --csv > store.csv                 all of it, for other tools
"""
ANSWERS = ("y", "yes")


def tend_store(words: Sequence[str]) -> None:
    """List the artefacts of a store; with `prune`, remove those that no run needs.

    Args:
        words: `prune`, folders of runs, and the options.

    Raises:
        FileNotFoundError: there is no store, or no run in a folder that is named.
        ValueError: nobody can be asked whether to remove, and --yes is missing; or an option has no meaning.
    """
    prune = list(words[:1]) == ["prune"]
    arguments = _parser().parse_args(words[prune:])
    _require_read(arguments, prune)
    # Imports that take long, which other commands do without.
    from ptq_diffusion.command.storage.sheet import csv_of, removals, table
    from ptq_diffusion.command.storage.shelf import Shelf

    shelf = Shelf.of(arguments.outputs, arguments.folders)
    if not prune:
        if arguments.csv:
            sys.stdout.write(csv_of(shelf))
        else:
            Console().print(table(shelf))
        return
    console = Console(soft_wrap=True, highlight=False)
    removal = shelf.removal(arguments.unfinished)
    console.print(*removals(removal), sep="\n", markup=False)
    if removal.nothing or not (arguments.yes or _agreed()):
        return
    console.print(removal.carry_out().text, markup=False)


def _require_read(arguments: Namespace, prune: bool) -> None:
    """Refuse an option that only pruning reads without it, or only a list with it.

    Raises:
        ValueError: there is one.
    """
    unread = ("csv",) if prune else ("yes", "unfinished")
    if given := [name for name in unread if getattr(arguments, name)]:
        there = "store, without prune" if prune else "store prune"
        raise ValueError(f"expected no --{given[0]} here, got it; it is an option of ptq-diffusion {there}")


def _agreed() -> bool:
    """Whether the user agrees.

    Raises:
        ValueError: nobody is there to be asked.
    """
    if not sys.stdin.isatty():
        raise ValueError("expected --yes where nobody can be asked, got none; nothing was removed")
    sys.stdout.write("remove all of this? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ANSWERS


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "ptq-diffusion store",
        usage="ptq-diffusion store [prune] [FOLDER ...] [--outputs DIR] [--unfinished] [--yes] [--csv]",
        description="Artefacts with their size, their age, the runs that made them (*) and those that need them.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="where runs lie; all of the outputs")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), metavar="DIR", help="the folder of the store")
    parser.add_argument("--unfinished", action="store_true", help="remove what killed processes had begun, too")
    parser.add_argument("--yes", action="store_true", help="remove without being asked")
    parser.add_argument("--csv", action="store_true", help="print every artefact, one a line")
    return parser
