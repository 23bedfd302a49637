"""Cost of fits and of sensitivities beside sampling as many images.

    OMP_NUM_THREADS=1 python experiments/fit_cost/measure.py IMAGES

CPU time of one process and thread; the tasks take turns, so that a busy machine slows all alike.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import truediv
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
from ptq_diffusion.engine.selection import select
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.float_path import FloatPath
from ptq_diffusion.stage.noise import Noise
from ptq_diffusion.stage.planning.changes import MeasureChanges
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples

NAMES = (
    *("ptqd", "ptqd_gated", "d2dpm", "tac", "matched", "wiener_matched", "readout_matched"),
    *("rescaled_matched", "rescaled_readout_matched"),
)
SMALL = ("sampler.steps=5", "seeds=[0]", "calibration.images=16", "bitwidth=w4a8")
SENSITIVITY = "sensitivity of 4 bitwidths"
ROUNDS = 3


def composed(images: int, correction: str, *words: str) -> DictConfig:
    """A few steps of so many images, which fitting and sampling share."""
    counts = (f"{option}={images}" for option in ("images", "noise.images", "sensitivity.images"))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*SMALL, *counts, f"correction={correction}", *words])


def made(stage: type[Stage], cfg: DictConfig, inputs: dict[str, Path], runtime: Runtime) -> None:
    """The stage, in a folder that is thrown away."""
    with TemporaryDirectory() as folder:
        stage().make(select(cfg, stage.uses), inputs, Path(folder), Workshop(runtime))


def fitted(cfg: DictConfig, shared: Mapping[str, Path], runtime: Runtime) -> None:
    """What a correction needs beside the calibrated network and the float path."""
    with TemporaryDirectory() as folder:
        inputs = dict(shared)
        if Noise.name in Fit().inputs(cfg):
            Noise().make(select(cfg, Noise.uses), inputs, Path(folder), Workshop(runtime))
            inputs[Noise.name] = Path(folder)
        made(Fit, cfg, inputs, runtime)


def seconds(task: Callable[[], object]) -> float:
    """Of the CPU."""
    since = time.process_time()
    task()
    return time.process_time() - since


def main(images: int) -> None:
    """Print a row for each correction."""
    quiet_libraries()
    keep_freed_memory()
    torch.set_num_threads(1)
    runtime, plain = Runtime("cpu", progress=False), composed(images, "none")
    budget = composed(images, "none", "bitwidth=budget")
    with TemporaryDirectory() as outputs:
        store = Store(Path(outputs), Workshop(runtime))
        shared = {stage.name: store.obtain(stage, plain) for stage in (Calibrate, Quantize, FloatPath)}
        tasks: dict[str, Callable[[], object]] = {
            "float": partial(made, FullPrecisionSamples, plain, {}, runtime),
            "quantized": partial(made, QuantizedSamples, plain, shared, runtime),
            "float path": partial(made, FloatPath, plain, {}, runtime),
            SENSITIVITY: partial(made, MeasureChanges, budget, shared, runtime),
        }
        for name in NAMES:
            tasks[name] = partial(fitted, composed(images, name), shared, runtime)
        spent: dict[str, Sequence[float]] = {name: [] for name in tasks}
        for _ in range(ROUNDS):
            spent = {name: [*spent[name], seconds(task)] for name, task in tasks.items()}
    table = Table("", "CPU s", "/ float sampling", "/ quantized sampling")
    for name in ("float path", SENSITIVITY, *NAMES):
        ratios = (statistics.median(map(truediv, spent[name], spent[base])) for base in ("float", "quantized"))
        table.add_row(name, f"{statistics.median(spent[name]):.1f}", *(f"{found:.2f}" for found in ratios))
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]))
