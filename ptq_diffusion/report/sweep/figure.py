"""The common style of a sweep's figures: a marker and a colour for each correction, PNG and PDF, labels apart."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from ptq_diffusion.report.sweep.lines import FULL_PRECISION, NONE, Line
from ptq_diffusion.report.sweep.runs import BITS
from ptq_diffusion.report.sweep.table import level

mpl.use("Agg")
MARKERS = "osD^vP*X<>hd"
COLOURS = 10
"""Colours of the cycle, of which two neighbours never have one marker: 60 corrections differ."""
LEGEND_COLUMNS = 4
OFFSETS = sorted(
    ((x, y) for y in (7, -13, 17, -23) for x in (0, 14, -14, 28, -28)),
    key=lambda place: math.hypot(place[0], place[1] + 3),
)
"""Places of a label from its point, in points of 1/72 inch, the nearest first."""


def styles(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """The marker and the colour of every correction that has a line with values, in their order, none first."""
    names = {line.correction for line in lines if line.values} - {FULL_PRECISION}
    ordered = sorted(names, key=lambda name: (name != NONE, name))
    return {
        name: {"color": "black" if name == NONE else f"C{i % COLOURS}", "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(ordered)
    }


def group_of(line: Line, titles: Mapping[str, str]) -> str:
    """The levels of a line but its bits, in words; empty where there are none."""
    return _in_words({key: text for key, text in line.levels.items() if key != BITS}, titles)


def groups_of(lines: Sequence[Line], titles: Mapping[str, str]) -> dict[str, list[Line]]:
    """Measured lines by what they have beside a policy of bits and its options, such as the saving of a budget.

    A float model is in the group of each line that shares its levels.
    """
    groups: dict[str, list[Line]] = {}
    for line in lines:
        if line.values and line.correction not in (FULL_PRECISION, NONE):
            groups.setdefault(_beside_policy(line, titles), []).append(line)
    measured = {group: list(members) for group, members in groups.items()}
    for line in lines:
        if line.values and line.correction in (FULL_PRECISION, NONE):
            sharing = [g for g, members in measured.items() if any(_shares(line, member) for member in members)]
            for group in sharing or [_beside_policy(line, titles)]:
                groups.setdefault(group, []).append(line)
    return groups


def policy_of(line: Line) -> tuple[str, ...]:
    """The levels of a line's bits: its policy, or its inner bits, then the policy's options; empty without bits."""
    return tuple(line.levels[key] for key in sorted(line.levels, key=lambda key: key != BITS) if _of_policy(key))


def write_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and as PDF, whose text stays text; the paths."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # every file would solve the layout again, which takes longer than to draw
    paths = [path.with_suffix(ending) for ending in (".png", ".pdf")]
    with mpl.rc_context({"pdf.fonttype": 42}):
        for place in paths:
            figure.savefig(place, dpi=200)
    return paths


def legend(figure: Figure, entries: Mapping[str, Mapping[str, Any]], *more: Line2D) -> None:
    """A legend of corrections below all panels, and of lines that have a label."""
    points = [
        Line2D([], [], linestyle="", markerfacecolor="none", label=name.replace("_", " "), **style)
        for name, style in entries.items()
    ]
    handles = [*points, *more]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(handles)))


def label_points(axis: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str]) -> None:
    """Write a text beside each point, at the nearest place where it covers no point, no front and no other text.

    Args:
        axis: of a figure that was drawn, whose limits are final; its points, bars and lines of steps are what is
            covered.
        points: places in its data's units.
        texts: of each.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    taken = [box.padded(0.045 * figure.dpi) for box in _marks(axis)]
    for point, text in zip(points, texts, strict=True):
        label = axis.annotate(text, point, (0, 0), textcoords="offset points", ha="center", fontsize=7, color="0.25")
        boxes = []
        for offset in OFFSETS:
            label.set_position(offset)
            boxes.append(label.get_window_extent())
            inside = axis.bbox.containsx(boxes[-1].x0) and axis.bbox.containsx(boxes[-1].x1)
            if inside and axis.bbox.containsy(boxes[-1].y0) and axis.bbox.containsy(boxes[-1].y1):
                if not any(boxes[-1].overlaps(box) for box in taken):
                    taken.append(boxes[-1])
                    break
        else:
            label.remove()


def _marks(axis: Axes) -> list[Bbox]:
    """The points that have a marker, the error bars and the steps of an axis, in the units of the screen."""
    points = [point for line in axis.lines if line.get_marker() != "None" for point in line.get_xydata()]  # type: ignore[union-attr]
    bars = [bar for group in axis.collections if isinstance(group, LineCollection) for bar in group.get_segments()]
    steps = [pair for line in axis.lines if line.get_drawstyle() == "steps-post" for pair in _sides(line.get_xydata())]
    shapes = [axis.transData.transform(np.atleast_2d(shape)) for shape in (*points, *bars, *steps)]
    return [Bbox([shape.min(0), shape.max(0)]) for shape in shapes]


def _sides(corners: ArrayLike) -> list[np.ndarray]:
    """The level and the upright sides of steps from one corner to the next, two points each."""
    points = np.asarray(corners)
    turns = np.stack([points[1:, 0], points[:-1, 1]], 1)
    return [np.stack(side) for side in (*zip(points[:-1], turns, strict=True), *zip(turns, points[1:], strict=True))]


def _of_policy(key: str) -> bool:
    return key == BITS or key.startswith("bitwidth.")


def _beside_policy(line: Line, titles: Mapping[str, str]) -> str:
    return _in_words({key: text for key, text in line.levels.items() if not _of_policy(key)}, titles)


def _in_words(levels: Mapping[str, str], titles: Mapping[str, str]) -> str:
    return ", ".join(f"{titles[key]} {level(key, text)}" for key, text in levels.items())


def _shares(line: Line, other: Line) -> bool:
    return line.levels.items() <= other.levels.items()
