"""Figure of a sweep: the error that corrections leave at every step, those of one cell in one axis."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ptq_diffusion.engine.run_files import STEPS
from ptq_diffusion.report.sweep.figure import group_of, legend, styles, write_figure
from ptq_diffusion.report.sweep.lines import NONE, Line
from ptq_diffusion.report.sweep.runs import BITS, Run

Curves = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]
"""Times, the root of the residual's variance and the share of the noise that is left, by correction."""


def step_errors(
    lines: Sequence[Line], runs: Sequence[Run], titles: Mapping[str, str], title: str, path: Path
) -> list[Path]:
    """Draw the residual of every correction against the time, a row of two panels for each cell.

    The left panel is the root mean square of the residual m~ - m, the right one its share of the quantization noise,
    1 - R^2, both logarithmic, as runs' own files of steps tell them.

    Args:
        lines: of a table.
        runs: which they are read from.
        titles: the words for factors.
        title: of the figure.
        path: the file to write, whose ending is replaced by those of PNG and PDF; nothing is written without steps.
    """
    folders = {run.name: run.folder for run in runs}
    cells: dict[str, dict[str, Line]] = {}
    for line in lines:
        if line.gain and (folders[line.run] / STEPS).is_file():
            name = ", ".join(part for part in (line.levels.get(BITS, ""), group_of(line, titles)) if part)
            cells.setdefault(name, {}).setdefault(line.correction, line)
    if not cells:
        return []
    looks = {name: style for name, style in styles(lines).items() if name != NONE}
    figure = Figure(figsize=(10, 0.7 + 2.7 * len(cells) + 0.2 * ((len(looks) + 3) // 4)), layout="constrained")
    axes = figure.subplots(len(cells), 2, squeeze=False)
    for row, (cell, members) in zip(axes, cells.items(), strict=True):
        for correction, line in members.items():
            t, *curves = read_steps(folders[line.run] / STEPS)
            for axis, curve in zip(row, curves, strict=True):
                axis.semilogy(t, curve, markersize=3, linewidth=1, markerfacecolor="none", **looks[correction])
        for axis, words in zip(row, ("rms of the residual of $m$", "share of the noise left, $1 - R^2$"), strict=True):
            axis.set_ylabel(words, fontsize=9)
            axis.set_xlabel("$t$, from noise to image")
            axis.invert_xaxis()
            axis.grid(alpha=0.3)
        row[0].set_title(cell, fontsize=9, loc="left")
    figure.suptitle(title, fontsize=10)
    legend(figure, looks)
    return write_figure(figure, path)


def read_steps(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Times, rms and share of the residual; what is not above 0 has no place on a logarithmic axis and leaves a gap."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    t = np.array([float(row["t"]) for row in rows])
    variance = np.array([float(row["variance"]) for row in rows])
    share = 1 - np.array([float(row["r2"]) for row in rows])
    return t, np.sqrt(_positive(variance)), _positive(share)


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((values > 0) & np.isfinite(values), values, np.nan)
