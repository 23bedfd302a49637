"""Figure of a bitwidth plan: signal to noise by step, the bits that were chosen, and layers against steps."""

from dataclasses import astuple, fields
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from ptq_diffusion.bitwidth.step_signal import StepSignal
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.sampler import Table

mpl.use("Agg")


def plan_figure(
    plan: BitwidthPlan, architecture: Architecture, table: Table, signal: StepSignal | None, path: Path
) -> None:
    """Draw a plan: layers against steps in the colours of their activation bits, beside it a strip of their weights'.

    Args:
        plan: the bits.
        architecture: the network's sites and work.
        table: the sampler's table.
        signal: the signal and the noise of every offer of bits, whose SNR_Q is drawn against SNR_F; None where
            it was not measured.
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


def bits_by_step(plan: BitwidthPlan, architecture: Architecture, steps: int) -> dict[str, NDArray[np.int64]]:
    """Bits of every site at every step, (sites, steps), by operand: weight (K and V of a product) and activation."""
    bits = np.array([[astuple(plan.at(site.name, i)) for i in range(steps)] for site in architecture.sites])
    return {field.name: bits[..., place] for place, field in enumerate(fields(LayerBits))}


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
    for name, bits in bits_by_step(plan, architecture, len(table)).items():
        axis.step(np.arange(len(table)), macs @ bits / macs.sum(), where="mid", label=name)
    axis.set_ylabel("mean bits\n(by MACs)")
    axis.legend(fontsize=8, loc="upper left")
    axis.grid(alpha=0.3)


def _heat_map(axis: Axes, plan: BitwidthPlan, architecture: Architecture, table: Table, figure: Figure) -> None:
    steps, sites = len(table), architecture.sites
    bits = bits_by_step(plan, architecture, steps)
    image = _draw_bits(axis, bits["activation"])
    places = range(0, len(sites), max(len(sites) // 20, 1))
    axis.set_yticks(list(places), [sites[place].name for place in places], fontsize=6)
    ticks = range(0, steps, max(steps // 10, 1))
    axis.set_xticks(list(ticks), [f"{table[i].t:g}" for i in ticks])
    axis.set_xlabel("$t$ of the step, from noise to image")
    weight = bits["weight"]
    # Nearly all plans have one bitwidth of a weight at all steps, for which a column is enough.
    varied = bool((weight != weight[:, :1]).any())
    strip = axis.inset_axes((1.01, 0, 0.2 if varied else 0.03, 1))
    _draw_bits(strip, weight if varied else weight[:, :1])
    strip.set(xticks=[], yticks=[])
    strip.set_xlabel("weights", fontsize=7)
    bar = figure.colorbar(image, ax=axis, pad=0.24 if varied else 0.06, ticks=range(2, 10), label="bits")
    bar.set_ticklabels([*map(str, range(2, 9)), "float"])


def _draw_bits(axis: Axes, bits: NDArray[np.int64]) -> AxesImage:
    shown = np.minimum(bits, 9)  # Float is drawn as one more than the most bits.
    return axis.imshow(shown, aspect="auto", interpolation="nearest", cmap="viridis", vmin=2, vmax=9)
