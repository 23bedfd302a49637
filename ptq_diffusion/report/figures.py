"""Figures of a report: diagnostics of the correction and the drift of the states, by step."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ptq_diffusion.correction import StepReport

mpl.use("Agg")


def noise_curves(report: Sequence[StepReport], path: Path) -> None:
    """k, bias, residual variance, R^2, variance budget, SNR_Q against SNR_F and the residual's shape, step by step."""
    times = [step.t for step in report]
    panels: list[tuple[str, Callable[[Axes], object]]] = [
        ("slope $k$ of the noise on $m$", lambda axis: axis.plot(times, [step.k for step in report])),
        ("bias, rms over channels", lambda axis: axis.plot(times, [step.bias for step in report])),
        ("residual variance $v$", lambda axis: axis.semilogy(times, _positive([step.variance for step in report]))),
        ("$R^2$, noise explained", lambda axis: _explained(axis, report)),
        ("share of the variance budget", lambda axis: _budget(axis, report)),
        ("signal to noise", lambda axis: _signal_to_noise(axis, report)),
        ("correlation of the residual", lambda axis: _residual(axis, report)),
    ]
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    *axes, spare = figure.subplots(2, 4).flat
    spare.set_axis_off()
    for axis, (title, draw) in zip(axes, panels, strict=True):
        draw(axis)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("$t$")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def drift_curves(times: Sequence[float], psnr: Mapping[str, Sequence[float | None]], path: Path) -> None:
    """PSNR of the states that every step leads to, to the float states of the same noise, a curve for each variant.

    Args:
        times: of the steps.
        psnr: in dB by the variant's name; None, where states are equal, leaves a gap.
        path: the file to write; a PDF of the same figure is written beside it.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    for i, (name, values) in enumerate(psnr.items()):
        axis.plot(times, _numbers(values), "os^D"[i % 4], linestyle="-", markersize=3, linewidth=1, label=name)
    if not any(value is not None for values in psnr.values() for value in values):
        axis.text(0.5, 0.5, "every state is the float one", ha="center", va="center", transform=axis.transAxes)
    axis.set_xlabel("$t$ of the step, from noise to image")
    axis.set_ylabel("PSNR of the state after it, to float, dB")
    axis.invert_xaxis()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    # Without its date a file has the same bytes whenever it is drawn.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})


def _explained(axis: Axes, report: Sequence[StepReport]) -> None:
    """Draw the explained variance: a gap between the lines means that there were too few images."""
    times = [step.t for step in report]
    axis.plot(times, [step.r2 for step in report], label="where it was fitted")
    axis.plot(times, _numbers([step.r2_held_out for step in report]), label="held out", linestyle="--")
    axis.legend(fontsize=8)


def _residual(axis: Axes, report: Sequence[StepReport]) -> None:
    """Draw the residual's correlations: at 0 it is white and fresh at every step, as the variance budget assumes."""
    times = [step.t for step in report]
    axis.plot(times, _numbers([step.neighbour_correlation for step in report]), label="with its neighbours")
    axis.plot(times, _numbers([step.step_correlation for step in report]), label="with the step before")
    axis.axhline(0, color="black", linewidth=0.8, linestyle="--")
    axis.legend(fontsize=8)


def _budget(axis: Axes, report: Sequence[StepReport]) -> None:
    """Above the line the residual exceeds what the sampler's noise can absorb."""
    points = [(step.t, step.budget) for step in report if step.budget is not None and step.budget > 0]
    if not points:
        axis.text(0.5, 0.5, "the sampler adds no noise", ha="center", va="center", transform=axis.transAxes)
        return
    axis.semilogy(*zip(*points, strict=True))
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--")


def _signal_to_noise(axis: Axes, report: Sequence[StepReport]) -> None:
    times = [step.t for step in report]
    axis.semilogy(times, _positive([step.snr_q for step in report]), label="$SNR_Q$")
    axis.semilogy(times, [step.snr_f for step in report], label="$SNR_F$", linestyle="--")
    axis.legend(fontsize=8)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    """Values for an axis; one that was not measured leaves a gap."""
    return np.array(values, dtype=float)


def _positive(values: Sequence[float]) -> np.ndarray:
    """Values for a logarithmic axis; what is zero or infinite has no place on it and leaves a gap."""
    array = np.array(values, dtype=float)
    return np.where((array > 0) & np.isfinite(array), array, np.nan)
