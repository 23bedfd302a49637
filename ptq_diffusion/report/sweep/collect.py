"""Collects many runs into tables and figures, those of one protocol together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptq_diffusion.artefact.files import write_text
from ptq_diffusion.engine.run_files import TABLE
from ptq_diffusion.report.sweep.baseline import baseline_of
from ptq_diffusion.report.sweep.forest import forest
from ptq_diffusion.report.sweep.frontier import frontier
from ptq_diffusion.report.sweep.images import samples
from ptq_diffusion.report.sweep.quantity import quantity_of
from ptq_diffusion.report.sweep.runs import read_runs
from ptq_diffusion.report.sweep.selection import by_protocol, where
from ptq_diffusion.report.sweep.sheet import Sheet, csv_text
from ptq_diffusion.report.sweep.steps import step_errors
from ptq_diffusion.report.sweep.table import titles

COLLECTED = "collected"


@dataclass(frozen=True)
class Collected:
    """The result of `collect`: a sheet for each protocol, and the files that were written."""

    sheets: Sequence[Sheet]
    paths: Sequence[Path]

    def csv(self) -> str:
        """All tables as one CSV, the sheet's name in the column `protocol`."""
        return csv_text(self.sheets)

    def latex(self) -> str:
        """All tables for LaTeX."""
        return "\n".join(sheet.latex() for sheet in self.sheets)


def collect(
    folders: Sequence[Path],
    against: Sequence[str] = (),
    conditions: Sequence[str] = (),
    metric: str | None = None,
) -> Collected:
    """Tables and figures of every run below some folders whose goal is a report, in <first folder>/collected.

    Numbers of different protocols cannot be compared: each protocol has a table and figures of its own, and in
    table.csv a name. Runs that failed are lines that say why. The full product of the levels that were seen is taken to
    be the grid, and its cells that no run has say "not run".

    Args:
        folders: where runs lie, such as outputs/runs.
        against: also compare the lines of each cell with this correction, or the one of these options; see
            `baseline_of`.
        conditions: which runs count, `KEY=VALUE`; see `where`.
        metric: the one that tables show and sort by, in place of FID.

    Raises:
        FileNotFoundError: below a folder there is no run.
        ValueError: there is no such correction, metric or option, or no run meets the conditions.
    """
    runs = where(read_runs(folders), conditions)
    baseline = baseline_of(against, runs) if against else None
    quantity = quantity_of(runs, metric)
    sheets = [Sheet.of(table, quantity, baseline) for table in by_protocol(runs)]
    out = folders[0] / COLLECTED
    out.mkdir(exist_ok=True)
    texts = {
        TABLE: csv_text(sheets),
        "table.md": "\n".join(sheet.markdown() for sheet in sheets),
        "table.tex": "\n".join(sheet.latex() for sheet in sheets),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    figures = [path for sheet in sheets for path in _figures(sheet, out, alone=len(sheets) == 1)]
    return Collected(sheets, [*(out / name for name in texts), *figures])


def _figures(sheet: Sheet, out: Path, alone: bool) -> list[Path]:
    """The figures of a sheet, PNG and PDF; those of one of several sheets have its name in theirs."""
    ending = "" if alone else f"-{sheet.name}"
    words = dict(zip(sheet.factors, titles(sheet.factors), strict=True))
    places = {name: out / f"{name}{ending}.png" for name in ("frontier", "forest", "steps", "samples")}
    return [
        *frontier(sheet.lines, words, sheet.quantity, sheet.title, places["frontier"]),
        *forest(sheet.lines, words, sheet.quantity, sheet.title, places["forest"]),
        *step_errors(sheet.lines, sheet.runs, words, sheet.title, places["steps"]),
        *samples(sheet.lines, sheet.runs, words, places["samples"]),
    ]
