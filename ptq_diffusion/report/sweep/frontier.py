"""Figure of a sweep: quality against bit operations and against bytes, with bits at the points and the Pareto front."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ptq_diffusion.report.sweep.figure import groups_of, label_points, legend, policy_of, styles, write_figure
from ptq_diffusion.report.sweep.lines import FULL_PRECISION, Line
from ptq_diffusion.report.sweep.quantity import Quantity

COSTS = {"bops_per_image": ("giga bit operations of an image", 1e9), "weight_bytes": ("size of the files, MB", 1e6)}
"""The axes: a number of reports, its title and its unit."""
FLOAT: dict[str, Any] = {"color": "0.4", "linewidth": 0.9, "linestyle": "--"}
FRONT: dict[str, Any] = {"color": "0.75", "linewidth": 3}


def frontier(
    lines: Sequence[Line], titles: Mapping[str, str], quantity: Quantity, title: str, path: Path
) -> list[Path]:
    """Draw the metric of every line against each cost; a row of panels for what differs beside bits and their policies.

    Bars are one standard error, the dashed line is full precision, the grey steps join the lines that no other line
    surpasses in both quality and cost. A metric of which less is better, and all of whose values are positive, but that
    of full precision to itself, is on a logarithmic axis: uncorrected models are often several times as far away.

    Args:
        lines: of a table; those without values are not drawn.
        titles: the words for factors.
        quantity: the metric.
        title: of the figure.
        path: the file to write, whose ending is replaced by those of PNG and PDF.
    """
    lines = [line for line in lines if line.values.get(quantity.name) is not None]
    groups, looks = groups_of(lines, titles), styles(lines)
    rows, legend_rows = max(len(groups), 1), (len(looks) + 5) // 4
    figure = Figure(figsize=(10, 0.7 + 3.4 * rows + 0.2 * legend_rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False, sharey="row")
    panels = []
    for row, (group, members) in zip(axes, groups.items(), strict=False):
        for axis, (cost, (words, _)) in zip(row, COSTS.items(), strict=True):
            panels.append((axis, _panel(axis, members, quantity, looks, cost)))
            axis.set(xscale="log", xlabel=words)
            _mark_numbers(axis.xaxis)
            if not quantity.higher_is_better and _is_positive(members, quantity):
                axis.set_yscale("log")
                _mark_numbers(axis.yaxis)
            axis.grid(alpha=0.3, linewidth=0.5)
        row[0].set_ylabel(quantity.title)
        row[0].set_title(group, fontsize=9, loc="left")
    figure.suptitle(title, fontsize=10)
    if looks:
        legend(figure, looks, Line2D([], [], label="full precision", **FLOAT), Line2D([], [], label="Pareto", **FRONT))
    figure.draw_without_rendering()
    for axis, labels in panels:
        label_points(axis, list(labels), list(labels.values()))
    return write_figure(figure, path)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other is at most equal to in both coordinates, in the order of the first."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _is_positive(lines: Sequence[Line], quantity: Quantity) -> bool:
    """Whether all values are above 0, but for a distance of full precision to itself."""
    values = [(line.values[quantity.name], line.correction) for line in lines]
    return all(value > 0 or (value == 0 and correction == FULL_PRECISION) for value, correction in values)


def _mark_numbers(axis: Axis) -> None:
    """Plain numbers at the marks of a logarithmic axis, several in each power of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axis.set_minor_locator(NullLocator())


def _panel(
    axis: Axes, lines: Sequence[Line], quantity: Quantity, looks: Mapping[str, dict[str, Any]], cost: str
) -> dict[tuple[float, float], str]:
    """Draw the lines of a group; the bits by the point of the best line of each policy, those of the front first."""
    unit = COSTS[cost][1]
    points: dict[tuple[float, float], Line] = {}
    for line in lines:
        value = float(line.values[quantity.name])
        if line.correction == FULL_PRECISION:
            axis.axhline(value, zorder=0, **FLOAT)
            continue
        x = line.values[cost] / unit
        points[x, value] = line
        error = line.values[f"{quantity.name}_se"]
        style: dict[str, Any] = {"markerfacecolor": "none", "markersize": 5, "elinewidth": 0.8, "linestyle": ""}
        axis.errorbar(x, value, yerr=error, **style, **looks[line.correction])
    front = pareto([(x, quantity.cost(value)) for x, value in points])
    if len(front) > 1:
        steps = [(x, quantity.cost(value)) for x, value in front]
        axis.plot(*zip(*steps, strict=True), drawstyle="steps-post", zorder=0, **FRONT)
    best: dict[tuple[str, ...], tuple[float, float]] = {}
    for place in sorted(points, key=lambda point: quantity.cost(point[1])):
        best.setdefault(policy_of(points[place]), place)
    shown = {place: policy[0] for policy, place in best.items() if policy}
    surpassed = {place: (place[0], quantity.cost(place[1])) not in front for place in shown}
    return {place: shown[place] for place in sorted(shown, key=lambda place: surpassed[place])}
