"""Figure of a sweep: the error that corrections leave at every step, those of one cell in one axis."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ptq_diffusion.engine.run_files import STEPS
from ptq_diffusion.report.sweep.figure import group_of, legend, styles, write_figure
from ptq_diffusion.report.sweep.lines import NONE, Line
from ptq_diffusion.report.sweep.runs import BITS, Run

ERRORS = {
    "rms": "rms of the residual: $\\tilde m - m$,\n$(1 + k)(\\tilde m - m)$ of PTQD's terms",
    "share": "share of the noise left, $1 - R^2$",
}
"""Panels of the output's error, by what they show, with the words of their axes."""
STATES = {"psnr": "PSNR of the state to float, dB"}
"""Panels of the states, which runs of earlier versions do not tell of."""
CORRECTED, QUANTIZED = "psnr_corrected", "psnr_quantized"
"""The columns of the states."""
Curves = Mapping[str, NDArray[np.float64]]
"""Times `t` and what panels show at them, and `uncorrected`, the PSNR of the quantized model's states."""


def step_errors(
    lines: Sequence[Line], runs: Sequence[Run], titles: Mapping[str, str], title: str, path: Path
) -> list[Path]:
    """Draw the errors of every correction against the time, a row of panels for each cell.

    The left panel is the root mean square of the residual: m~ - m of fits along a path; of PTQD's terms and other fits
    from moments r = D - k m - mu = (1 + k)(m~ - m). The next one is its share of the quantization noise, 1 - R^2. Both
    are logarithmic. The right one is the PSNR of the state that a step leads to, to the float state of the same noise,
    with that of the quantized model as it is. All are as runs' own files of steps tell them.

    Args:
        lines: of a table.
        runs: which they are read from.
        titles: the words for factors.
        title: of the figure.
        path: the file to write, whose ending is replaced by those of PNG and PDF; nothing is written without steps.
    """
    cells = _cells(lines, runs, titles)
    if not cells:
        return []
    drifts = any(np.isfinite(curves["psnr"]).any() for members in cells.values() for curves in members.values())
    panels = ERRORS | (STATES if drifts else {})
    looks = {name: style for name, style in styles(lines).items() if name != NONE or drifts}
    height = 0.7 + 2.7 * len(cells) + 0.2 * ((len(looks) + 3) // 4)
    figure = Figure(figsize=(1 + 4.5 * len(panels), height), layout="constrained")
    axes = figure.subplots(len(cells), len(panels), squeeze=False)
    for row, (cell, members) in zip(axes, cells.items(), strict=True):
        for axis, (name, words) in zip(row, panels.items(), strict=True):
            _draw(axis, name, members, looks)
            axis.set_ylabel(words, fontsize=9)
        row[0].set_title(cell, fontsize=9, loc="left")
    for axis in axes.flat:
        axis.invert_xaxis()
    for axis in axes[-1]:
        axis.set_xlabel("$t$, from noise to image")
    figure.suptitle(title, fontsize=10)
    legend(figure, looks)
    return write_figure(figure, path)


def read_steps(path: Path) -> Curves:
    """The curves of a run; what is not above 0 has no place on a logarithmic axis, and is a gap as what is not told.

    Raises:
        ValueError: the file is cut off, damaged or another one.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in ("t", "variance", "r2")}
        states = {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in (CORRECTED, QUANTIZED)}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(
            f"expected the steps of a run in {path}, got another or a damaged file ({type(error).__name__}: {error}); "
            "run its command again"
        ) from error
    if not rows or not np.isfinite(columns["t"]).all():
        raise ValueError(f"expected a time of every step in {path}, got a damaged file; run its command again")
    errors = {"rms": np.sqrt(_positive(columns["variance"])), "share": _positive(1 - columns["r2"])}
    return {"t": columns["t"], **errors, "psnr": states[CORRECTED], "uncorrected": states[QUANTIZED]}


def _cells(lines: Sequence[Line], runs: Sequence[Run], titles: Mapping[str, str]) -> Mapping[str, Mapping[str, Curves]]:
    """The curves by cell and correction."""
    folders = {run.name: run.folder for run in runs}
    cells: dict[str, dict[str, Curves]] = {}
    for line in lines:
        if line.gain and (folders[line.run] / STEPS).is_file():
            name = ", ".join(part for part in (line.levels.get(BITS, ""), group_of(line, titles)) if part)
            members = cells.setdefault(name, {})
            if line.correction not in members:
                members[line.correction] = read_steps(folders[line.run] / STEPS)
    return cells


def _draw(axis: Axes, name: str, members: Mapping[str, Curves], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw one panel of a cell; in that of the states the quantized model's are behind the others."""
    drawn = [(curves["t"], curves[name], looks[correction]) for correction, curves in members.items()]
    if name in STATES:
        first = next(iter(members.values()))
        drawn.insert(0, (first["t"], first["uncorrected"], looks.get(NONE, {"color": "black"})))
    else:
        axis.set_yscale("log")
    for t, curve, look in drawn:
        axis.plot(t, curve, markersize=3, linewidth=1, markerfacecolor="none", **look)
    axis.grid(alpha=0.3)


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((values > 0) & np.isfinite(values), values, np.nan)
