"""Figures of a report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ptq_diffusion.correction import StepReport

mpl.use("Agg")


def image_grid(variants: Mapping[str, Tensor], columns: int, path: Path) -> None:
    """One row of images for each variant, the same sample in each column.

    Args:
        variants: name to images, (N, C, H, W) uint8.
        columns: how many samples are shown.
        path: the file to write.
    """
    figure = Figure(figsize=(0.75 * columns + 1.4, 0.8 * len(variants)), layout="constrained")
    axes = figure.subplots(len(variants), columns, squeeze=False)
    for row, (name, images) in zip(axes, variants.items(), strict=True):
        for axis, image in zip(row, images, strict=False):
            pixels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
            axis.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
        for axis in row:
            axis.set_axis_off()
        row[0].text(-0.15, 0.5, name.replace("_", " "), ha="right", va="center", transform=row[0].transAxes)
    figure.savefig(path, dpi=150)


def noise_curves(report: Sequence[StepReport], path: Path) -> None:
    """k, bias, residual variance, R^2, share of the variance budget and SNR_Q against SNR_F, step by step."""
    times = [found.t for found in report]
    panels: list[tuple[str, Callable[[Axes], object]]] = [
        ("correlation $k$", lambda axis: axis.plot(times, [found.k for found in report])),
        ("bias, rms over channels", lambda axis: axis.plot(times, [found.bias for found in report])),
        ("residual variance $v$", lambda axis: axis.semilogy(times, _positive([found.variance for found in report]))),
        ("$R^2$, noise explained", lambda axis: axis.plot(times, [found.r2 for found in report])),
        ("share of the variance budget", lambda axis: _budget(axis, report)),
        ("signal to noise", lambda axis: _signal_to_noise(axis, report)),
    ]
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    for axis, (title, draw) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        draw(axis)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("$t$")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _budget(axis: Axes, report: Sequence[StepReport]) -> None:
    """Above the line the residual exceeds what the sampler's noise can absorb."""
    found = [(step.t, step.budget) for step in report if step.budget is not None and step.budget > 0]
    if not found:
        axis.text(0.5, 0.5, "the sampler adds no noise", ha="center", va="center", transform=axis.transAxes)
        return
    axis.semilogy(*zip(*found, strict=True))
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--")


def _signal_to_noise(axis: Axes, report: Sequence[StepReport]) -> None:
    times = [found.t for found in report]
    axis.semilogy(times, _positive([found.snr_q for found in report]), label="$SNR_Q$")
    axis.semilogy(times, [found.snr_f for found in report], label="$SNR_F$", linestyle="--")
    axis.legend(fontsize=8)


def _positive(values: Sequence[float]) -> np.ndarray:
    """Values for a logarithmic axis; what is zero or infinite has no place on it and leaves a gap."""
    array = np.array(values, dtype=float)
    return np.where((array > 0) & np.isfinite(array), array, np.nan)
