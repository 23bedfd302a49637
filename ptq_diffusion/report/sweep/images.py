"""Figure of a sweep: the same samples of every line, below each other, each with its bits and its correction."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ptq_diffusion.engine.run_files import STRIPS
from ptq_diffusion.report.strips import image_strips, read_strip
from ptq_diffusion.report.sweep.figure import group_of
from ptq_diffusion.report.sweep.lines import FULL_PRECISION, NONE, Line
from ptq_diffusion.report.sweep.runs import BITS, Run

MOST = 40
"""Strips of one figure."""


def samples(lines: Sequence[Line], runs: Sequence[Run], titles: Mapping[str, str], path: Path) -> list[Path]:
    """Draw a strip for each line whose run has kept its first images, in the order of the table; 40 at most.

    Args:
        lines: of a table.
        runs: which they are read from.
        titles: the words for factors.
        path: the file to write, whose ending is replaced by those of PNG and PDF; nothing is written without strips.
    """
    folders = {run.name: run.folder for run in runs}
    rows = []
    for line in lines:
        variant = {FULL_PRECISION: "full_precision", NONE: "quantized"}.get(line.correction, "corrected")
        file = folders[line.run] / STRIPS / f"{variant}.png" if line.values else None
        if file is not None and file.is_file():
            words = (line.levels.get(BITS, ""), line.correction.replace("_", " "), group_of(line, titles))
            rows.append(("  ".join(word for word in words if word), read_strip(file)))
    # Models of different sizes may be judged by one protocol; the first size is shown.
    rows = [(name, strip) for name, strip in rows if strip.shape[0] == rows[0][1].shape[0]][:MOST]
    if not rows:
        return []
    paths = [path.with_suffix(".png"), path.with_suffix(".pdf")]
    image_strips(rows, *paths)
    return paths
