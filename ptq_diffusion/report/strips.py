"""Strips of samples: the same noise in each column, one variant or correction in each row."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

mpl.use("Agg")
INCHES = 0.62
"""The height of a strip on paper."""
LONGEST = 12
"""Inches of a strip, which is cut after so many."""


def strip(images: Tensor) -> NDArray[np.uint8]:
    """Images side by side as RGB.

    Args:
        images: (N, C, H, W) uint8; of three channels or more the first three are shown, of fewer the first, as grey.

    Returns:
        (H, N W, 3).
    """
    channels = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    pixels: NDArray[np.uint8] = channels.permute(2, 0, 3, 1).flatten(1, 2).numpy()
    return pixels


def write_strip(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a strip without loss."""
    Image.fromarray(pixels).save(path)


def read_strip(path: Path) -> NDArray[np.uint8]:
    """A strip that `write_strip` wrote, (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def image_strips(rows: Sequence[tuple[str, NDArray[np.uint8]]], path: Path, *more: Path) -> None:
    """Strips below each other, each with its name on its left.

    Args:
        rows: names and strips, (H, N W, 3) uint8, of one height.
        path: the file to write, PNG or PDF by its ending.
        more: further files of the same figure.
    """
    height = rows[0][1].shape[0]
    width = min(max(pixels.shape[1] for _, pixels in rows), round(height * LONGEST / INCHES))
    letters = 0.07 * max(len(name) for name, _ in rows) + 0.1
    size = (letters + INCHES * width / height, INCHES * 1.06 * len(rows) + 0.04)
    figure = Figure(figsize=size)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    figure.subplots_adjust(left=letters / size[0], right=1, bottom=0.01, top=0.99, hspace=0.06)
    for axis, (name, pixels) in zip(axes, rows, strict=True):
        axis.imshow(pixels[:, :width], interpolation="nearest", aspect="auto")
        axis.set_axis_off()
        axis.text(-0.06 / (size[0] - letters), 0.5, name, ha="right", va="center", transform=axis.transAxes, fontsize=9)
    for file in (path, *more):
        figure.savefig(file, dpi=200)
