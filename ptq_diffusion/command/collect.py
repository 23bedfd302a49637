"""`ptq-diffusion collect FOLDER [--against CORRECTION]`: one table, one verdict and one figure of many runs."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def collect_runs(words: Sequence[str]) -> None:
    """Print the tables of the runs below a folder and the paths of the files that are written.

    Args:
        words: the folder, and the correction that the others are compared with.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the reports follow different protocols, or there is no such correction.
    """
    # Imports torch, which the processes of a sweep must not do before Hydra has set their threads.
    from ptq_diffusion.report.sweep.collect import collect

    parser = ArgumentParser("ptq-diffusion collect", description="One table and one figure of many runs.")
    parser.add_argument("folder", type=Path, help="where runs lie, such as outputs/runs")
    parser.add_argument(
        "--against",
        metavar="CORRECTION",
        help="also compare the corrections of each cell with this one: a name, none or best",
    )
    arguments = parser.parse_args(words)
    collected = collect(arguments.folder, arguments.against)
    console = Console(soft_wrap=True)
    console.print(collected.table)
    console.print(collected.verdict)
    for path in collected.paths:
        console.print(str(path), markup=False, highlight=False)
