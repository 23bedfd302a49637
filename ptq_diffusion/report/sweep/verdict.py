"""The verdict of a sweep on every correction, over all its cells."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ptq_diffusion.metric import Interval, holm, noninferiority
from ptq_diffusion.report.sweep.lines import NONE, Line
from ptq_diffusion.report.sweep.quantity import Quantity

MARGIN = 0.02
"""A share of the quantized model's metric: a correction that certainly costs less than this harms nothing."""
LEVEL = 0.05
FID = Quantity()
COST = "cost"
TIE = 1e-9
"""FIDs that differ by less are one: that of no correction is the sum of a correction's and of its gain."""


@dataclass(frozen=True)
class Verdict:
    """One correction over the cells that it has.

    Args:
        correction: its name.
        cells: in how many it was measured; one that was run twice, as by two versions, counts twice.
        harmless: in how many its FID is certainly below that of no correction + 2 %, Holm over its cells at 5 %; None
            of no correction itself.
        first: in how many its FID is the lowest of all corrections and of none; `auto` shares it with the one that it
            chose.
        recovered: the share of the FID lost to quantization that it gives back, of each cell in which the loss is
            shown, its interval above 0; None of no correction itself, and where no loss is known, as of PSNR.
    """

    correction: str
    cells: int
    harmless: int | None
    first: int
    recovered: tuple[float, ...] | None


def verdicts(lines: Sequence[Line], quantity: Quantity = FID) -> list[Verdict]:
    """One for every correction with measured lines and one for none, the one that is first most often first.

    Args:
        lines: of a table.
        quantity: the metric that their gains are of; of one of which more is better the highest is first.
    """
    lines = [_as_cost(line, quantity) for line in lines if line.values.get(quantity.name) is not None]
    cells: dict[tuple[tuple[str, str], ...], list[Line]] = {}
    for line in lines:
        if line.gain:
            cells.setdefault(tuple(line.levels.items()), []).append(line)
    names = sorted({line.correction for cell in cells.values() for line in cell})
    unsorted = [_verdict(name, list(cells.values())) for name in names]
    if cells:
        unsorted.append(Verdict(NONE, len(cells), None, sum(map(_none_is_first, cells.values())), None))
    return sorted(unsorted, key=lambda verdict: (-verdict.first, -verdict.cells, verdict.correction))


def titles_of(quantity: Quantity) -> tuple[str, ...]:
    """The heads of the columns."""
    best = f"{'highest' if quantity.higher_is_better else 'lowest'} {quantity.title}"
    return "correction", "cells", "not worse than none by 2 %, Holm", best, f"lost {quantity.title} regained"


def cells_of(verdict: Verdict) -> list[str]:
    """A verdict as a reader sees it."""
    harmless = "" if verdict.harmless is None else str(verdict.harmless)
    regained = "" if verdict.recovered is None else _shares(verdict.recovered, verdict.cells)
    return [verdict.correction, str(verdict.cells), harmless, str(verdict.first), regained]


def _shares(recovered: Sequence[float], cells: int) -> str:
    """The least and the largest share, and of how many cells where that is not all."""
    shares = sorted(round(share, 2) + 0.0 for share in recovered)  # No share is -0 %
    if not shares:
        return "no loss shown"
    text = " to ".join(dict.fromkeys((f"{shares[0]:.0%}", f"{shares[-1]:.0%}")))
    return text if len(shares) == cells else f"{text} in {len(shares)}"


def verdict_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The verdict as a table for the console, whole on 80 columns."""
    table = Table(*titles, title="over all cells", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(escape(row[0].replace("_", " ")), *row[1:])
    return table


def _verdict(name: str, cells: Sequence[Sequence[Line]]) -> Verdict:
    rows = [(line, _least(cell)) for cell in cells for line in cell]
    rows = [(line, least) for line, least in rows if line.correction == name]
    lines = [line for line, _ in rows]
    p = [noninferiority(_gain(line), MARGIN * abs(_quantized(line))) for line in lines]
    first = sum(line.values[COST] - least < TIE for line, least in rows)
    losses = [line for line in lines if line.loss is not None]
    recovered = tuple(share for line in losses if (share := _recovered(line)) is not None) if losses else None
    return Verdict(name, len(lines), sum(value < LEVEL for value in holm(p)), first, recovered)


def _as_cost(line: Line, quantity: Quantity) -> Line:
    """The line with its metric, the gain and the loss in it, as a cost, of which less is better."""
    gain, loss = line.gain, line.loss
    if quantity.higher_is_better:
        gain, loss = gain and gain.reversed, loss and loss.reversed
    return replace(line, values={COST: quantity.cost(line.values[quantity.name])}, gain=gain, loss=loss)


def _least(cell: Sequence[Line]) -> float:
    """The lowest FID of a cell, whose quantized model without correction counts too."""
    return min(fid for line in cell for fid in (float(line.values[COST]), _quantized(line)))


def _none_is_first(cell: Sequence[Line]) -> bool:
    return min(_quantized(line) for line in cell) - _least(cell) < TIE


def _gain(line: Line) -> Interval:
    assert line.gain is not None
    return line.gain


def _quantized(line: Line) -> float:
    """The quantized model's FID."""
    return float(line.values[COST]) - _gain(line).difference


def _recovered(line: Line) -> float | None:
    """(FID quantized - FID corrected) / (FID quantized - FID float); None where the loss is not told from 0."""
    return -_gain(line).difference / line.loss.difference if line.loss and line.loss.low > 0 else None
