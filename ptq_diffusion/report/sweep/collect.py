"""Collects many runs into one table and one figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ptq_diffusion.artefact.files import write_text
from ptq_diffusion.engine.run_files import TABLE
from ptq_diffusion.metric.protocol import require_one_protocol
from ptq_diffusion.report.sweep.against import with_differences
from ptq_diffusion.report.sweep.figure import against_operations
from ptq_diffusion.report.sweep.lines import lines_of
from ptq_diffusion.report.sweep.runs import Run, differing, read_runs
from ptq_diffusion.report.sweep.table import console, csv_text, failures_apart, level, markdown, shown, titles
from ptq_diffusion.report.sweep.verdict import TITLES, cells_of, verdict_table, verdicts

COMMON = ("sampler._target_", "sampler.steps", "sampler.eta", "calibration.images", "noise.images")
"""Options that are named even where no run differs in them."""


@dataclass(frozen=True)
class Collected:
    """The result of `collect`: a table for the console, another of the verdict over all cells, and the files."""

    table: Table
    verdict: Table
    paths: Sequence[Path]


def collect(folder: Path, against: str | None = None) -> Collected:
    """table.csv, table.md and figure.png below <folder>/collected, of every run below a folder whose goal is a report.

    Runs that failed are lines that say why. The full product of the levels that were seen is taken to be the grid, and
    its cells that no run has say "not run".

    Args:
        folder: where runs lie, such as outputs/runs.
        against: also compare the corrections of each cell with this one; see `with_differences`.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the reports follow different protocols.
    """
    runs = read_runs(folder)
    require_one_protocol({run.name: protocol(run.report) for run in runs if run.report})
    factors = differing(runs)
    lines = lines_of(runs, factors)
    if against is not None:
        lines = with_differences(lines, runs, against)
    columns, cells = shown(lines, factors)
    title, caption = _title(runs), _common(runs[0], factors)
    paths = [folder / "collected" / name for name in (TABLE, "table.md", "figure.png")]
    paths[0].parent.mkdir(exist_ok=True)
    write_text(paths[0], csv_text(lines, factors))
    verdict_rows = [cells_of(verdict) for verdict in verdicts(lines)]
    write_text(paths[1], f"{title}; {caption}.\n\n{markdown(columns, cells)}\n\n{markdown(TITLES, verdict_rows)}\n")
    against_operations(lines, dict(zip(factors, titles(factors), strict=True)), title, paths[2])
    brief, why = failures_apart(lines)
    return Collected(console(*shown(brief, factors), title, caption + why), verdict_table(verdict_rows), paths)


def protocol(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The report's protocol; an early one says only in its rows how many images it has."""
    return report["protocol"] | {key: report["rows"][0][key] for key in ("images", "seeds")}


def _title(runs: Sequence[Run]) -> str:
    report = next((run.report for run in runs if run.report), None)
    if report is None:
        return "no run is complete"
    fields = protocol(report)
    count = f"{len(fields['seeds'])} x {fields['images']} images"
    return f"{fields['metric']} of {count} against {fields['against']}"


def _common(run: Run, factors: Sequence[str]) -> str:
    """Options that all runs share and that a reader needs to know."""
    shared = [key for key in COMMON if key not in factors and key in run.config]
    return "in all: " + ", ".join(f"{key.removesuffix('._target_')} {level(key, run.level(key))}" for key in shared)
