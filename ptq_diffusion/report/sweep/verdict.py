"""The verdict of a sweep on every correction, over all its cells."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ptq_diffusion.metric import Interval, holm, noninferiority
from ptq_diffusion.report.sweep.lines import FULL_PRECISION, Line

MARGIN = 0.02
"""A share of the quantized model's FID: a correction that certainly costs less than this harms nothing."""
LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """One correction over the cells that it has.

    Args:
        correction: its name.
        cells: in how many it was measured; one that was run twice, as by two versions, counts twice.
        harmless: in how many its FID is certainly below that of no correction + 2 %, Holm over its cells at 5 %.
        first: in how many its FID is the lowest of all corrections; `auto` shares it with the one that it chose.
        recovered: the least and the largest share of the FID lost to quantization that it gives back; None where no
            float model has a line or quantization lost nothing.
    """

    correction: str
    cells: int
    harmless: int
    first: int
    recovered: tuple[float, float] | None


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """One for every correction with measured lines, the one that is first most often first."""
    cells: dict[tuple[tuple[str, str], ...], list[Line]] = {}
    for line in lines:
        if line.gain:
            cells.setdefault(tuple(line.levels.items()), []).append(line)
    names = sorted({line.correction for cell in cells.values() for line in cell})
    unsorted = [_verdict(name, list(cells.values()), _float_models(lines)) for name in names]
    return sorted(unsorted, key=lambda verdict: (-verdict.first, -verdict.cells, verdict.correction))


TITLES = ("correction", "cells", "not worse than none by 2 %, Holm", "lowest FID", "lost FID regained")


def cells_of(verdict: Verdict) -> list[str]:
    """A verdict as a reader sees it."""
    low, high = verdict.recovered or (None, None)
    regained = "" if low is None or high is None else f"{low:.0%} to {high:.0%}"
    return [verdict.correction, str(verdict.cells), str(verdict.harmless), str(verdict.first), regained]


def verdict_table(rows: Sequence[Sequence[str]]) -> Table:
    """The verdict as a table for the console, whole on 80 columns."""
    table = Table(*TITLES, title="over all cells", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(escape(row[0].replace("_", " ")), *row[1:])
    return table


def _verdict(name: str, cells: Sequence[Sequence[Line]], full: Sequence[Line]) -> Verdict:
    rows = [(line, min(other.values["fid"] for other in cell)) for cell in cells for line in cell]
    rows = [(line, least) for line, least in rows if line.correction == name]
    lines = [line for line, _ in rows]
    p = [noninferiority(_gain(line), MARGIN * _quantized(line)) for line in lines]
    first = sum(line.values["fid"] == least for line, least in rows)
    shares = [share for line in lines if (share := _recovered(line, full)) is not None]
    recovered = (min(shares), max(shares)) if shares else None
    return Verdict(name, len(lines), sum(value < LEVEL for value in holm(p)), first, recovered)


def _gain(line: Line) -> Interval:
    assert line.gain is not None
    return line.gain


def _quantized(line: Line) -> float:
    """The quantized model's FID."""
    return float(line.values["fid"]) - _gain(line).difference


def _float_models(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.correction == FULL_PRECISION and line.values]


def _recovered(line: Line, full: Sequence[Line]) -> float | None:
    """(FID quantized - FID corrected) / (FID quantized - FID float)."""
    float_model = next((one for one in full if one.levels.items() <= line.levels.items()), None)
    lost = _quantized(line) - float(float_model.values["fid"]) if float_model else 0.0
    return -_gain(line).difference / lost if lost > 0 else None
