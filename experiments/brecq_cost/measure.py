"""Time and memory of block reconstruction, ours and the published loop, in one run.

python -m experiments.brecq_cost.measure BLOCK SAMPLES ITERATIONS [ROUNDS]

BLOCK is a block of the bundled CIFAR-10 network, or `all` for the whole calibration. Every measurement has a process of
its own, one after the other, the arms taking turns.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.brecq_cost.published import Loop, PublishedReconstruction
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
from ptq_diffusion.engine.selection import select
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import quantize
from ptq_diffusion.rounding import BRECQ, BlockReconstruction, Descent, Subject, UniformSteps, WeightReconstruction
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.calibration.choose_states import ChooseStates
from ptq_diffusion.stage.plan import Plan, read_plan
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct
from ptq_diffusion.stage.rounding.subject import subject_of
from ptq_diffusion.stage.trajectories import Trajectories

STEPS = 16
"""Steps of the sampler, each of which has a state of every image."""
STAGES = (Trajectories, ChooseStates, Calibrate, Plan)
"""Stages that every arm begins behind."""
ALL = "all"


@dataclass(frozen=True)
class Size:
    """The part of a network that is reconstructed, and on how much.

    Args:
        block: its name, or `ALL`.
        samples: states of float sampling.
        iterations: of every block.
        store: the folder with the artefacts of `STAGES`.
    """

    block: str
    samples: int
    iterations: int
    store: Path

    @property
    def cfg(self) -> DictConfig:
        """The experiment."""
        words = [f"sampler.steps={STEPS}", f"calibration.images={self.samples // STEPS}", "bitwidth=w4a8"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", [*words, "rounding=brecq"])


@dataclass(frozen=True)
class Spent:
    """The cost of an arm, and what it came to.

    Args:
        seconds: CPU time of collecting and learning.
        before: MiB of the process when it began.
        peak: MiB of the process at most, from there on.
        error: the mean square by which the outputs differ from the float ones, in units of that of nearest rounding.
    """

    seconds: float
    before: float
    peak: float
    error: float


def published(size: Size, subject: Subject, **numbers: float) -> WeightReconstruction:
    """The published loop."""
    return PublishedReconstruction(subject, Loop(size.iterations, **numbers))  # type: ignore[arg-type]


def ours(size: Size, subject: Subject, rows: int) -> WeightReconstruction:
    """BRECQ as `rounding=brecq` has it but for the rows of a call."""
    descent = Descent(size.iterations, learning_rate=0.03, penalty=3.0)
    return BlockReconstruction(subject, BRECQ("quantized", UniformSteps(), descent, 4, rows), size.store / "calls")


Arm = Callable[[Size, Subject], WeightReconstruction]
ARMS: Mapping[str, Arm] = {
    "published": published,
    "published, inputs float": lambda size, subject: published(size, subject, quantizes_inputs=False),
    "published, our rate": lambda size, subject: published(size, subject, learning_rate=0.03),
    "ours, 32 samples": lambda size, subject: ours(size, subject, 8),
    "ours, 16 samples": lambda size, subject: ours(size, subject, 4),
}
"""From a size and a network to its reconstruction; the first is what all are compared with."""


def subject(size: Size) -> Subject:
    """The float network and its quantized copy, rounded to nearest."""
    shop, cfg = Workshop(Runtime("cpu", progress=False)), size.cfg
    store = Store(size.store, shop)
    inputs = {stage.name: store.obtain(stage, cfg) for stage in STAGES}
    part = select(cfg, Reconstruct.uses)
    plan, observations = read_plan(inputs[Plan.name]), read_observations(part, inputs[Calibrate.name], shop.host)
    nearest = quantize(shop.host.guided(part, inputs), plan, observations, construct(part.quantizer.weight))
    return subject_of(part, inputs, nearest, shop)


def measured(size: Size, name: str) -> Spent:
    """The cost of one arm in this process."""
    quiet_libraries()
    keep_freed_memory()
    torch.set_num_threads(1)
    work = ARMS[name](size, subject(size))
    parts = [part for part in work.parts if size.block in (ALL, part.name)]
    if not parts:
        raise ValueError(f"expected a block of {', '.join(part.name for part in work.parts)}, got {size.block}")
    nearest = error(work, size.block)
    Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here on.
    before, since = resident("VmRSS"), time.process_time()
    for part in parts:
        work.install(work.rounded(part))
    seconds, peak = time.process_time() - since, resident("VmHWM")
    return Spent(seconds, before, peak, error(work, size.block) / nearest)


@torch.no_grad()
def error(work: WeightReconstruction, block: str) -> float:
    """The mean square by which outputs of a block, or of the network, differ from the float ones over all states."""
    name, squares = work.quantized.output_layer_name if block == ALL else block, []
    for i, x_t, condition in work.states:
        pair = (output(work, denoiser, name, i, x_t, condition) for denoiser in (work.quantized, work.model))
        squares.append(float(sub(*pair).square().mean()))
    return statistics.fmean(squares)


def output(work: WeightReconstruction, denoiser: Denoiser, name: str, *state: Any) -> Tensor:  # noqa: ANN401
    """The output of a module in one forward."""
    outputs: list[Tensor] = []
    with denoiser.network.get_submodule(name).register_forward_hook(lambda _, __, one: outputs.append(one)):
        work.ask(denoiser, *state)
    return outputs[0]


def resident(field: str) -> float:
    """MiB of this process's resident set, now or at most; pages of mapped files count while they are mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def alone(size: Size, name: str) -> Spent:
    """The cost of one arm in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measured, size, name).result()


def main(block: str, samples: int, iterations: int, rounds: int = 3) -> None:
    """Print a row for each arm: medians over the rounds, and ratios within a round."""
    with TemporaryDirectory() as folder:
        size = Size(block, samples, iterations, Path(folder))
        subject(size)
        turns = [{name: alone(size, name) for name in ARMS} for _ in range(rounds)]
    base, median = next(iter(ARMS)), statistics.median
    table = Table("", "CPU s", "/ published", "MiB at most", "/ published", "above the start", "/ published", "error")
    for name in ARMS:
        times, peaks, above = (
            [(one(turn[name]), one(turn[name]) / one(turn[base])) for turn in turns]
            for one in (lambda s: s.seconds, lambda s: s.peak, lambda s: s.peak - s.before)
        )
        cells = [f"{median(pair[place] for pair in pairs):.2f}" for pairs in (times, peaks, above) for place in (0, 1)]
        table.add_row(name, *cells, f"{turns[0][name].error:.4f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
