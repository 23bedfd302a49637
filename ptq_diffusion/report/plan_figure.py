"""Figure of a bitwidth plan: signal to noise by step, the bits that were chosen, and layers against steps."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ptq_diffusion.bitwidth.step_signal import StepSignal
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.sampler import Table

mpl.use("Agg")


def plan_figure(
    plan: BitwidthPlan, architecture: Architecture, table: Table, signal: StepSignal | None, path: Path
) -> None:
    """Draw a plan.

    Args:
        plan: the bits.
        architecture: the network's sites and work.
        table: the sampler's table.
        signal: the signal and the noise of every offer of bits, whose SNR_Q is drawn against SNR_F; None where the
            policy does not read it.
        path: the file to write.
    """
    figure = Figure(figsize=(9, 8.5 if signal else 6.5), layout="constrained")
    heights = [2, 1, 4] if signal else [1, 4]
    *upper, bits_axis, map_axis = figure.subplots(len(heights), 1, height_ratios=heights)
    if signal is not None:
        _signal_to_noise(upper[0], signal, table)
    _mean_bits(bits_axis, plan, architecture, table)
    _heat_map(map_axis, plan, architecture, table, figure)
    for axis in (*upper, bits_axis):  # The columns of all panels are the same steps.
        axis.set_xlim(-0.5, len(table) - 0.5)
        axis.tick_params(labelbottom=False)
    figure.savefig(path, dpi=150)


def bits_by_step(plan: BitwidthPlan, architecture: Architecture, steps: int) -> NDArray[np.int64]:
    """Bits of the input of every site at every step, (sites, steps)."""
    return np.array([[plan.at(site.name, i).activation for i in range(steps)] for site in architecture.sites])


def _signal_to_noise(axis: Axes, signal: StepSignal, table: Table) -> None:
    rows = np.arange(len(table))
    for offer, ratio in zip(signal.offered, signal.snr(signal.offered, "norm"), strict=True):
        axis.semilogy(rows, ratio.numpy(), marker=".", label=f"SNR$_Q$ of W{offer.weight}A{offer.activation}")
    axis.semilogy(rows, [step.snr for step in table], color="black", label="SNR$_F$, forward process")
    axis.set_ylabel("signal to noise, $|m| / |D|$")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def _mean_bits(axis: Axes, plan: BitwidthPlan, architecture: Architecture, table: Table) -> None:
    macs = np.array([site.macs for site in architecture.sites], dtype=float)
    weight = np.array([[plan.at(site.name, i).weight for i in range(len(table))] for site in architecture.sites])
    for name, bits in (("weight", weight), ("activation", bits_by_step(plan, architecture, len(table)))):
        axis.step(np.arange(len(table)), macs @ bits / macs.sum(), where="mid", label=name)
    axis.set_ylabel("mean bits\n(by MACs)")
    axis.legend(fontsize=8, loc="upper left")
    axis.grid(alpha=0.3)


def _heat_map(axis: Axes, plan: BitwidthPlan, architecture: Architecture, table: Table, figure: Figure) -> None:
    bits = np.minimum(bits_by_step(plan, architecture, len(table)), 9)  # Float is drawn as one more than the most bits.
    image = axis.imshow(bits, aspect="auto", interpolation="nearest", cmap="viridis", vmin=2, vmax=9)
    bar = figure.colorbar(image, ax=axis, ticks=range(2, 10), label="activation bits")
    bar.set_ticklabels([*map(str, range(2, 9)), "float"])
    places = range(0, len(architecture.sites), max(len(architecture.sites) // 20, 1))
    axis.set_yticks(list(places), [architecture.sites[place].name for place in places], fontsize=6)
    ticks = range(0, len(table), max(len(table) // 10, 1))
    axis.set_xticks(list(ticks), [f"{table[i].t:g}" for i in ticks])
    axis.set_xlabel("$t$ of the step, from noise to image")
