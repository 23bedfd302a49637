"""Figures of a sweep: what they draw is what the lines say, and no text covers another."""

import csv
import itertools
import json
import math
import random

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from ptq_diffusion.metric import Interval
from ptq_diffusion.report.sweep import figure as style
from ptq_diffusion.report.sweep.collect import collect
from ptq_diffusion.report.sweep.forest import forest
from ptq_diffusion.report.sweep.frontier import frontier, pareto
from ptq_diffusion.report.sweep.lines import FULL_PRECISION, NONE, Line
from ptq_diffusion.report.sweep.quantity import Quantity
from ptq_diffusion.report.sweep.runs import BITS
from ptq_diffusion.report.sweep.steps import read_steps
from tests.report.sweep.test_collect import EXAMPLE, run_like

pytestmark = pytest.mark.figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, by name."""
    figures, save = {}, Figure.savefig

    def noted(figure, path, **options):
        figures[path.name] = figure
        save(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    return figures


def sweep_below(folder):
    """Eight runs with the diagnostics of their steps and their first images."""
    for place, (correction, bits, eta) in enumerate(itertools.product(("none", "ptqd", "bias"), (4, 8), (0.0, 1.0))):
        run = run_like(folder, correction, eta, bits)
        content = json.loads((run / "report.json").read_text())
        content["rows"][2] |= {"fid": 3.0 + place / 7, "bops_per_image": 1e11 * bits, "weight_bytes": 1e6 * bits}
        (run / "report.json").write_text(json.dumps(content))
        (run / "steps.csv").write_text(without_drift((EXAMPLE / "steps.csv").read_text()))
        (run / "samples").mkdir()
        for variant in ("full_precision", "quantized", "corrected"):
            pixels = np.full((8, 32, 3), 20 * place, dtype=np.uint8)
            Image.fromarray(pixels).save(run / "samples" / f"{variant}.png")


def without_drift(text):
    """Steps as versions tell them that do not follow the states."""
    table = list(csv.reader(text.splitlines()))
    places = [place for place, name in enumerate(table[0]) if not name.startswith(("mse_", "psnr_"))]
    return "\n".join(",".join(row[place] for place in places) for row in table) + "\n"


def with_drift(text, place):
    """Steps as versions tell them that follow the states."""
    head, *rows = text.splitlines()
    told = [f"{row},0.1,{30 - i},0.1,{35 + place - i}" for i, row in enumerate(rows)]
    return "\n".join([f"{head},mse_quantized,psnr_quantized,mse_corrected,psnr_corrected", *told]) + "\n"


def texts_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))


def test_every_figure_is_there_twice_and_names_what_it_shows(tmp_path, drawn):
    sweep_below(tmp_path)
    paths = collect([tmp_path]).paths
    figures = {f"{name}{end}" for name in ("frontier", "forest", "steps", "samples") for end in (".png", ".pdf")}
    assert {path.name for path in paths[3:]} == figures and all(path.stat().st_size > 5000 for path in paths[3:])
    for name in figures:
        assert all(word in texts_of(drawn[name]) for word in ("ptqd", "bias", "eta 0", "eta 1")), name
    assert "full precision" in texts_of(drawn["samples.png"]) and "8/8  bias  eta 1" in texts_of(drawn["samples.png"])
    assert len(drawn["steps.png"].axes) == 2 * 4, "errors of the output alone, in four cells"
    assert "PTQD's terms" in drawn["steps.png"].axes[0].get_ylabel(), "whose residual is not that of m~"
    assert "4/8" in texts_of(drawn["frontier.png"]) and "Pareto" in texts_of(drawn["frontier.png"])
    assert len(drawn["samples.png"].axes) == 2 + 4 + 8, "two float models, four quantized ones, eight corrections"
    axes = drawn["forest.png"].axes[0]
    assert len(axes.containers) == 8 and len(axes.get_yticks()) == 8 + 4


def test_quantized_samples_have_a_row_where_they_are_compared(tmp_path, drawn):
    gap, head = Interval(0.5, 0.1, None), "FID - bitwidth=w8a8, 95 %"
    lines = [
        Line({BITS: "4/8"}, FULL_PRECISION, "a", {"fid": 1.0}),
        Line({BITS: "4/8"}, NONE, "a", {"fid": 2.0}, against={head: gap}),
        Line({BITS: "4/8"}, "ptqd", "a", {"fid": 1.5}, gap.reversed, against={head: gap}),
        Line({BITS: "8/8"}, NONE, "b", {"fid": 1.5}, against={}),
    ]
    forest(lines, {}, Quantity(), "", tmp_path / "forest.png")
    gains, compared = drawn["forest.png"].axes
    assert [label.get_text() for label in gains.get_yticklabels()] == ["4/8", "none", "ptqd"]
    assert (len(gains.containers), len(compared.containers)) == (1, 2)


def test_full_precision_at_no_distance_from_itself_leaves_the_axis_logarithmic(tmp_path, drawn):
    names = ("fid_to_fp", "fid_to_fp_se", "bops_per_image", "weight_bytes")
    rows = {FULL_PRECISION: (0.0, 0.0, 3e12, 4e6), "ptqd": (0.2, 0.01, 1e11, 1e6), "bias": (4.0, 0.1, 2e11, 2e6)}
    lines = [Line({BITS: "4/8"}, name, name, dict(zip(names, row, strict=True))) for name, row in rows.items()]
    frontier(lines, {}, Quantity("fid_to_fp"), "", tmp_path / "frontier.png")
    for axis in drawn["frontier.png"].axes:
        low, high = axis.get_ylim()
        assert axis.get_yscale() == "log" and 0.05 < low < 0.2 and 4 < high < 20


def test_states_have_a_panel_where_a_run_tells_of_them(tmp_path, drawn):
    sweep_below(tmp_path)
    for place, steps in enumerate(sorted(tmp_path.rglob("steps.csv"))):
        if place % 2:
            steps.write_text(with_drift(steps.read_text(), place))
    collect([tmp_path])
    axes = drawn["steps.png"].axes
    assert len(axes) == 3 * 4
    for axis in axes[2::3]:
        assert "PSNR" in axis.get_ylabel() and axis.get_yscale() == "linear" and len(axis.lines) == 3
    heights = {tuple(line.get_ydata()[:1]) for axis in axes[2::3] for line in axis.lines}
    assert {(30.0,), (36.0,), (38.0,)} <= heights and any(math.isnan(*height) for height in heights)


def test_what_runs_do_not_have_is_not_drawn(tmp_path):
    run_like(tmp_path)
    assert {path.stem for path in collect([tmp_path]).paths[3:]} == {"frontier", "forest"}


@pytest.mark.parametrize(
    "damaged",
    ["", "\0", "a,b\n1,2\n", "t,variance,r2\n1\n", "t,variance,r2\nx,1,1\n", "t,variance,r2\nnan,1,1\n"],
    ids=["empty", "bytes", "other columns", "cut off", "words", "no times"],
)
def test_damaged_steps_are_refused(tmp_path, damaged):
    (tmp_path / "steps.csv").write_text(damaged)
    with pytest.raises(ValueError, match="steps.csv, got a.* damaged file.*; run its command again"):
        read_steps(tmp_path / "steps.csv")


def test_nothing_surpasses_the_front_and_something_surpasses_all_else():
    draw = random.Random(0)
    points = [(draw.randrange(12), draw.randrange(12)) for _ in range(40)]
    front = pareto(points)

    def surpassed(point):
        return any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in points)

    assert [surpassed(point) for point in front] == [False] * len(front)
    assert all(surpassed(point) for point in set(points) - set(front))


def test_labels_cover_neither_points_nor_a_front_nor_each_other():
    figure = Figure(figsize=(4, 3))
    axis = figure.subplots()
    draw = random.Random(1)
    points = [(draw.random(), draw.random()) for _ in range(15)] + [(0.5, 0.5), (0.5, 0.51), (0.0, 0.0), (1.0, 1.0)]
    for x, y in points:
        axis.errorbar(x, y, yerr=0.03, marker="o", linestyle="")
    corners = [(0.1, 0.7), (0.4, 0.45), (0.9, 0.2)]
    axis.plot(*zip(*corners, strict=True), drawstyle="steps-post")
    figure.draw_without_rendering()
    style.label_points(axis, points, [f"{place}/8" for place in range(len(points))])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) > 12
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert not [1 for point in axis.transData.transform(points) for box in boxes if box.contains(*point)]
    turns = axis.transData.transform([corners[0], (0.4, 0.7), corners[1], (0.9, 0.45), corners[2]])
    sides = [Bbox([np.minimum(*side), np.maximum(*side)]) for side in itertools.pairwise(turns)]
    assert not [1 for side in sides for box in boxes if box.overlaps(side)]
    assert all(axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1) for box in boxes)


def test_savings_of_a_budget_lie_on_one_axis(tmp_path, drawn):
    for saving, eta in itertools.product((36, 53), (0.0, 1.0)):
        run = run_like(tmp_path / f"{saving}", "ptqd", eta)
        config = (run / "config.yaml").read_text().replace("\nbitwidth:\n", f"\nbitwidth:\n  saving: {saving}\n")
        (run / "config.yaml").write_text(config)
        content = json.loads((run / "report.json").read_text())
        content["rows"][2] |= {"bops_per_image": 1e12 / saving, "fid": 2.0 + saving / 50}
        content["signatures"] |= {"samples_quantized": f"{saving}{eta}", "samples_corrected": f"{saving}{eta}"}
        (run / "report.json").write_text(json.dumps(content))
    (sheet,) = collect([tmp_path]).sheets
    assert "bitwidth.saving" in sheet.factors
    axes = drawn["frontier.png"].axes
    assert [axis.get_title(loc="left") for axis in axes] == ["eta 0", "", "eta 1", ""]
    for axis in axes[::2]:
        places = {line.get_xdata()[0] for line in axis.lines if line.get_marker() == style.MARKERS[1]}
        assert places == {1e3 / 36, 1e3 / 53} and axis.get_yscale() == "log"
