"""Figure of a sweep: paired differences with their intervals, a row for each correction of each cell."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptq_diffusion.metric import Interval
from ptq_diffusion.report.sweep.figure import group_of, write_figure
from ptq_diffusion.report.sweep.lines import Line
from ptq_diffusion.report.sweep.quantity import Quantity
from ptq_diffusion.report.sweep.runs import BITS

ROW = 0.2
"""The height of a row on paper in inches."""
LETTER = 0.07
"""The width of a letter of its text."""


def forest(lines: Sequence[Line], titles: Mapping[str, str], quantity: Quantity, title: str, path: Path) -> list[Path]:
    """Draw corrected - quantized of the metric, and the differences to a baseline where lines have them.

    Quantized samples have a row where they have a baseline of their own, such as those of other bits.

    A point is a difference, its bar the 95 % interval; filled where the interval leaves out 0.

    Args:
        lines: of a table.
        titles: the words for factors.
        quantity: the metric.
        title: of the figure.
        path: the file to write, whose ending is replaced by those of PNG and PDF.
    """
    cells: dict[str, list[Line]] = {}
    for line in lines:
        if line.gain or any(isinstance(gap, Interval) for gap in line.against.values()):
            bits, group = line.levels.get(BITS, ""), group_of(line, titles)
            cells.setdefault(", ".join(part for part in (bits, group) if part), []).append(line)
    if not cells:
        return []
    rows = _rows(cells)
    names = list(dict.fromkeys(name for line in lines for name in line.against))
    texts = max(4.2, LETTER * max(len(text) for text, _ in rows))
    figure = Figure(figsize=(texts + 3.2 * (1 + len(names)), 1.1 + ROW * len(rows)), layout="constrained")
    axes = figure.subplots(1, 1 + len(names), squeeze=False, sharey=True)[0]
    better = "right" if quantity.higher_is_better else "left"
    heads = [f"{quantity.title} - quantized, 95 %", *names]
    for axis, head in zip(axes, heads, strict=True):
        gaps = [line and (line.gain if head == heads[0] else line.against.get(head)) for _, line in rows]
        _panel(axis, [gap if isinstance(gap, Interval) else None for gap in gaps])
        axis.set_xlabel(f"{head}\n(better: {better if head == heads[0] else 'left'})", fontsize=8)
    axes[0].set_yticks(range(len(rows)), [text for text, _ in rows], fontsize=8)
    for label, (_, row) in zip(axes[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if row else "bold")
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(title, fontsize=10)
    return write_figure(figure, path)


def _rows(cells: Mapping[str, Sequence[Line]]) -> list[tuple[str, Line | None]]:
    """The rows from the top: the name of a cell, then its corrections."""
    rows: list[tuple[str, Line | None]] = []
    for cell, members in cells.items():
        rows += [(cell, None), *((line.correction.replace("_", " "), line) for line in members)]
    return rows


def _panel(axis: Axes, gaps: Sequence[Interval | None]) -> None:
    axis.axvline(0, color="black", linewidth=0.8)
    for place, gap in enumerate(gaps):
        if gap is None:
            continue
        face = "none" if gap.low <= 0 <= gap.high else "C0"
        half = (gap.high - gap.low) / 2
        axis.errorbar(gap.difference, place, xerr=half, color="C0", marker="o", markersize=4, mfc=face, capsize=2)
    axis.grid(alpha=0.3, axis="x")
    axis.tick_params(labelsize=8, left=False)
