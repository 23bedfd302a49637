"""`ptq-diffusion collect FOLDER ... [OPTIONS]`: tables, verdicts and figures of many runs."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

EXAMPLES = """examples:
  ptq-diffusion collect outputs/runs                              all runs, a table for each protocol
  ptq-diffusion collect outputs/runs --against ptqd               and paired differences to PTQD
  ptq-diffusion collect outputs/runs --against bitwidth=w4a8      and of all other bits to W4A8
  ptq-diffusion collect A B --where eta=0 --where bits=4/8,4/4    some of the runs below two folders
  ptq-diffusion collect outputs/runs --metric kid                 KID in place of FID, the best first
  ptq-diffusion collect outputs/runs --csv > runs.csv             every metric of every line
"""


def collect_runs(words: Sequence[str]) -> None:
    """Print the tables of the runs below some folders and the paths of the files that are written.

    Args:
        words: the folders and the options.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: there is no such correction, metric or option, or no run meets the conditions.
    """
    arguments = _parser().parse_args(words)
    # Imports torch, which the processes of a sweep must not do before Hydra has set their threads.
    from ptq_diffusion.engine.runtime import quiet_libraries
    from ptq_diffusion.report.sweep.collect import collect

    quiet_libraries()
    collected = collect(arguments.folders, arguments.against, arguments.where, arguments.metric)
    if arguments.csv or arguments.latex:
        sys.stdout.write(collected.csv() if arguments.csv else collected.latex())
        return
    console = Console(soft_wrap=True)
    for sheet in collected.sheets:
        console.print(sheet.console())
    for path in collected.paths:
        console.print(str(path), markup=False, highlight=False)


def _parser() -> ArgumentParser:
    description = "Tables, verdicts and figures of many runs, of each protocol its own, in FOLDER/collected."
    parser = ArgumentParser(
        "ptq-diffusion collect",
        description=description,
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="where runs lie, such as outputs/runs")
    parser.add_argument(
        "--against",
        metavar="BASELINE",
        action="append",
        default=[],
        help="also compare the corrections of each cell with this one, a name, none or best; or its bits, roundings or "
        "quantizers with those of KEY=VALUE, which may be given several times until they stand for one",
    )
    parser.add_argument(
        "--where",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="only runs with this option; KEY is dotted or its last part, VALUE,VALUE is any of them",
    )
    parser.add_argument("--metric", metavar="NAME", help="show and sort by this metric of the reports in place of fid")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print the CSV file alone, with all metrics")
    form.add_argument("--latex", action="store_true", help="print the tables for LaTeX (booktabs) alone")
    return parser
