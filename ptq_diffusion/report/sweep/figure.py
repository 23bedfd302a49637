"""The figure of a sweep: quality against bit operations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ptq_diffusion.report.sweep.lines import FULL_PRECISION, Line
from ptq_diffusion.report.sweep.runs import BITS

mpl.use("Agg")
MARKERS = "osD^vP*X<>hd"
LEGEND_COLUMNS = 4
APART = 1.02
"""The factor between the horizontal places of two corrections of one cell."""


def against_operations(lines: Sequence[Line], titles: Mapping[str, str], title: str, path: Path) -> None:
    """FID, and FID to the float model, against bit operations an image.

    A marker for each correction, set apart a little from the others of its cell; a colour for what else differs, bits
    apart; bars are one standard error; a float model is a horizontal line in the colour of its cells.

    Args:
        lines: of a table; those without values are not drawn.
        titles: what a factor is called, for the legend.
        title: of the figure.
        path: the file to write.
    """
    points = [line for line in lines if line.values]
    names = list(dict.fromkeys(line.correction for line in points if line.correction != FULL_PRECISION))
    groups = dict.fromkeys(_group(line, titles) for line in points if line.gain)
    colours = {group: f"C{i % 10}" for i, group in enumerate(groups)}
    entries = len(names) + len(colours)
    figure = Figure(figsize=(10, 4.6 + 0.2 * (entries // LEGEND_COLUMNS)), layout="constrained")
    axes = figure.subplots(1, 2)
    for line in points:
        colour = _colour(_group(line, titles), colours)
        if line.correction == FULL_PRECISION:
            axes[0].axhline(line.values["fid"], color=colour, linewidth=0.9, linestyle="--", zorder=0)
            continue
        place = names.index(line.correction)
        operations = line.values["bops_per_image"] * APART ** (place - (len(names) - 1) / 2)
        style = {"color": colour, "marker": MARKERS[place % len(MARKERS)], "markerfacecolor": "none"}
        axes[0].errorbar(operations, line.values["fid"], yerr=line.values["fid_se"], **style)
        axes[1].plot(operations, line.values["fid_to_fp"], **style)
    for axis, quantity in zip(axes, ("FID, dashed: full precision", "FID to the float model's samples"), strict=True):
        axis.set_title(quantity, fontsize=10)
        axis.set_xscale("log")
        axis.set_xlabel("bit operations an image")
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    if names:
        _legend(figure, names, colours)
    figure.savefig(path, dpi=150)


def _legend(figure: Figure, names: Sequence[str], colours: Mapping[tuple[str, ...], str]) -> None:
    axis = figure.axes[0]
    for i, name in enumerate(names):
        axis.plot([], [], color="black", marker=MARKERS[i % len(MARKERS)], linestyle="", mfc="none", label=name)
    for group, colour in colours.items():
        if group:
            axis.plot([], [], color=colour, marker="s", linestyle="", label=", ".join(group))
    figure.legend(fontsize=8, loc="outside lower center", ncols=LEGEND_COLUMNS)


def _group(line: Line, titles: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{titles[key]} {level}" for key, level in line.levels.items() if key != BITS)


def _colour(group: tuple[str, ...], colours: Mapping[tuple[str, ...], str]) -> str:
    """The colour of the one group that a line belongs to; black for what several share."""
    owners = [colour for owner, colour in colours.items() if set(group) <= set(owner)]
    return owners[0] if len(owners) == 1 else "black"
