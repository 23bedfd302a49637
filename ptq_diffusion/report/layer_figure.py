"""Figure of the errors of a network's sites: sites against steps in logarithmic colour, sites grouped by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from os.path import commonprefix
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

mpl.use("Agg")
Errors = NDArray[np.float64]
"""(sites, steps), relative errors; NaN where there is none."""
ROW, LOWEST, HIGHEST = 0.045, 3.6, 11.0
"""Inches of a site, and of all of them at least and at most."""
LETTER, ARROW, PANEL, GAP, RIGHT = 0.057, 0.3, 1.75, 0.12, 0.95
"""Inches of a letter of a block's name, of the line from it, of a panel, between two of them, and of the colour bar."""
TOP, CURVES, BOTTOM = 0.5, 0.6, 0.55
"""Inches of the titles, of the curves and of the times."""
LINE = 0.12
"""Inches between the names of two blocks."""
DECADES = 5
"""Powers of ten that colours tell apart at most; what is below has the palest one."""
EXACT = "#d5e3ee"
"""The colour of a site without error, as one in float is."""
# Without the palest colours, which are too near to the white between blocks.
COLOURS = ListedColormap(mpl.colormaps["magma_r"](np.linspace(0.1, 1, 256))).with_extremes(bad=EXACT)


def layer_figure(
    sites: Sequence[str], errors: Mapping[tuple[str, str], Errors], times: Sequence[float], path: Path
) -> None:
    """Draw relative errors, a panel for each kind, and above it their median and their spread over the sites.

    Args:
        sites: names, in the order in which the network computes them.
        errors: by the two lines of the panel's title.
        times: of the steps.
        path: the file to write; a PDF of the same figure is written beside it.
    """
    groups = site_groups(sites)
    rows = min(max(ROW * len(sites), LINE * len(groups), LOWEST), HIGHEST)
    layout = Layout(len(errors), rows, ARROW + LETTER * max(len(name) for name, _ in groups))
    figure, norm = Figure(figsize=(layout.width, layout.height)), colours(list(errors.values()))
    for place, (title, values) in enumerate(errors.items()):
        map_axis = layout.panel(figure, place)
        _heat_map(map_axis, values, groups, times, norm)
        curve_axis = layout.curves(figure, place)
        _curves(curve_axis, values, norm)
        curve_axis.set_title("\n".join(title), fontsize=8.5)
        if place == 0:
            _name_groups(map_axis, groups, len(sites), layout.rows)
            curve_axis.set_ylabel("median,\n10-90 %", fontsize=7)
        else:
            curve_axis.tick_params(labelleft=False)
    _colour_bar(figure, layout, norm)
    figure.text(0.5, 0.08 / layout.height, "$t$ of the step, from noise to image", ha="center", fontsize=8)
    figure.savefig(path, dpi=200)
    # Without its date a file has the same bytes whenever it is drawn.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


@dataclass(frozen=True)
class Layout:
    """The places of the figure's parts.

    Args:
        panels: how many.
        rows: inches of all sites.
        left: inches of the names of blocks.
    """

    panels: int
    rows: float
    left: float

    @property
    def width(self) -> float:
        """Inches of the figure's width."""
        return self.left + self.panels * PANEL + (self.panels - 1) * GAP + RIGHT

    @property
    def height(self) -> float:
        """Inches of the figure's height."""
        return BOTTOM + self.rows + CURVES + TOP

    def panel(self, figure: Figure, place: int) -> Axes:
        """The axes of a heat map."""
        return self._axes(figure, self.left + place * (PANEL + GAP), BOTTOM, PANEL, self.rows)

    def curves(self, figure: Figure, place: int) -> Axes:
        """The axes of the curves above it."""
        return self._axes(figure, self.left + place * (PANEL + GAP), BOTTOM + self.rows + 0.06, PANEL, CURVES - 0.06)

    def bar(self, figure: Figure) -> Axes:
        """The axes of the colour bar."""
        return self._axes(figure, self.width - RIGHT + 0.13, BOTTOM, 0.13, self.rows)

    def _axes(self, figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))


def site_groups(sites: Sequence[str]) -> list[tuple[str, int]]:
    """The blocks that sites lie in, one after the other, and the number of sites of each.

    A block is the first part of a name and, where it is one of several, its number: `down_blocks.0`, `mid_block`. What
    all names begin with is no part of it.
    """
    parts = [site.split(".") for site in sites]
    shared = len(commonprefix(parts)) if len(parts) > 1 else 0
    names = [_block(name[shared:] or name[-1:]) for name in parts]
    return [(name, len(list(members))) for name, members in groupby(names)]


def _block(parts: Sequence[str]) -> str:
    return ".".join(parts[: 2 if len(parts) > 1 and parts[1].isdigit() else 1])


def colours(errors: Sequence[Errors]) -> LogNorm:
    """The scale of colours that serves all panels, whole powers of ten."""
    every = np.concatenate([values.ravel() for values in errors])
    positive = every[np.isfinite(every) & (every > 0)]
    if not len(positive):
        return LogNorm(1e-3, 1)
    high = np.ceil(np.log10(np.quantile(positive, 0.999)))
    low = max(np.floor(np.log10(np.quantile(positive, 0.01))), high - DECADES)
    return LogNorm(10.0 ** min(low, high - 1), 10.0**high)


def _heat_map(
    axis: Axes, values: Errors, groups: Sequence[tuple[str, int]], times: Sequence[float], norm: LogNorm
) -> None:
    shown = np.ma.masked_where(~(values > 0), values)
    axis.imshow(shown, aspect="auto", interpolation="nearest", cmap=COLOURS, norm=norm)
    for end in np.cumsum([count for _, count in groups])[:-1]:
        axis.axhline(end - 0.5, color="white", linewidth=1.1)
    axis.set_yticks([])
    ticks = range(0, len(times), -(-len(times) // 5))
    axis.set_xticks(ticks, [f"{times[i]:.4g}" for i in ticks], fontsize=7)


def _curves(axis: Axes, values: Errors, norm: LogNorm) -> None:
    steps = np.arange(values.shape[1])
    known = np.where(values > 0, values, np.nan)
    if np.isfinite(known).any(0).all():
        low, median, high = np.nanquantile(known, [0.1, 0.5, 0.9], axis=0)
        axis.fill_between(steps, low, high, color="#b63679", alpha=0.25, linewidth=0)
        axis.plot(steps, median, color="#51127c", linewidth=1.2)
    axis.set_yscale("log")
    axis.set_ylim(norm.vmin, norm.vmax)
    axis.yaxis.set_major_locator(LogLocator(numticks=3))
    axis.set_xlim(-0.5, values.shape[1] - 0.5)
    axis.tick_params(labelbottom=False, labelsize=6.5)
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _name_groups(axis: Axes, groups: Sequence[tuple[str, int]], sites: int, height: float) -> None:
    """Write the names of blocks beside their middles, moved apart where they overlap; some, if all have no room."""
    ends = np.cumsum([count for _, count in groups])
    middles = [end - 1 - (count - 1) / 2 for end, (_, count) in zip(ends, groups, strict=True)]
    stride = -(-len(groups) // int(height / LINE))
    named = [(name, middle) for (name, _), middle in zip(groups, middles, strict=True)][::stride]
    places = spread_out([middle for _, middle in named], LINE * sites / height, sites - 0.5)
    for (name, middle), place in zip(named, places, strict=True):
        axis.annotate(
            name,
            xy=(0, middle),
            xytext=(-0.11, place),
            xycoords=axis.get_yaxis_transform(),
            textcoords=axis.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.5", "shrinkA": 1, "shrinkB": 0},
        )


def spread_out(places: Sequence[float], gap: float, last: float) -> list[float]:
    """Ascending places moved as far apart as `gap`, the last one at most at `last` where there is room for all."""
    down = list(places)
    for i in range(1, len(down)):
        down[i] = max(down[i], down[i - 1] + gap)
    down[-1] = min(down[-1], max(last, places[-1]))
    for i in range(len(down) - 2, -1, -1):
        down[i] = min(down[i], down[i + 1] - gap)
    return down


def _colour_bar(figure: Figure, layout: Layout, norm: LogNorm) -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), cax=layout.bar(figure), extend="both", extendfrac=0.15 / layout.rows
    )
    bar.set_label("relative error, $|\\hat y - y|^2\\,/\\,|y|^2$", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    left, below = 1 - (RIGHT - 0.13) / layout.width, 0.2 / layout.height
    size = 0.13 / layout.width, 0.13 / layout.height
    figure.add_artist(Rectangle((left, below), *size, transform=figure.transFigure, color=EXACT))
    figure.text(left + 0.18 / layout.width, below, "no error", fontsize=7)
