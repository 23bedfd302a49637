"""Sampling of 64 images end to end by each backend: python -m experiments.backends.sampling EXPORT THREADS [BATCH].

EXPORT is the folder that goal=export printed, of model=cifar10_ddpm.
"""

import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import ptq_diffusion as pd
from experiments.backends.measure import clock, ratios, versions
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.conditions import Unconditional
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.metric.distance.psnr import psnr
from ptq_diffusion.model import DiffusersDenoiser, Pixels
from ptq_diffusion.network import QuantizedDenoiser
from ptq_diffusion.stage.drawing.corrected import draw_corrected
from ptq_diffusion.stage.drawing.images import DrawImages

IMAGES, ROUNDS = 64, 5
FLOAT = "float"
Draw = Callable[[], Tensor]


def contenders(quantized: QuantizedDenoiser, correction: FittedCorrection, batch: int) -> dict[str, Draw]:
    """Ways to draw the same images: float, and quantized and corrected by either backend."""
    model, drawing = DiffusersDenoiser.from_folder("bundled:cifar10_ddpm"), (Unconditional(), Pixels())
    works = {FLOAT: DrawImages.of(model, correction.steps, *drawing)}
    for backend in ("simulated", "integer"):
        works[backend] = draw_corrected(quantized.to_backend(backend), correction, *drawing)
    works["float, again"] = works[FLOAT]
    parts = chunks("images", [0], IMAGES, batch)

    def draw(work: DrawImages) -> Tensor:
        return torch.cat([work(chunk, torch.device("cpu"))["images"] for chunk in parts])

    return {name: partial(draw, work) for name, work in works.items()}


def timed(draws: Mapping[str, Draw]) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each, a value for each round, every other round backwards; and the images."""
    images = {name: draw() for name, draw in draws.items()}
    times: dict[str, list[float]] = {name: [] for name in draws}
    for turn in range(ROUNDS):
        for name in list(draws)[:: 1 if turn % 2 else -1]:
            start = clock()
            draws[name]()
            times[name].append(clock() - start)
    return times, images


def main() -> None:
    """Print how fast each draws, and how near its images are to those of float and of simulation."""
    folder, threads, *batch = sys.argv[1:]
    keep_freed_memory()
    torch.set_num_threads(int(threads))
    quantized, correction = pd.load_quantized(folder), pd.load_correction(folder)
    with torch.inference_mode():
        times, images = timed(contenders(quantized, correction, int(batch[0]) if batch else IMAGES))
    title = f"{IMAGES} images, {len(correction.steps)} steps, {threads} threads"
    table = Table("", "times as fast as float (quartiles)", "seconds", "PSNR to float", "to simulated", title=title)
    for name, seconds in times.items():
        low, median, high = ratios(seconds, times[FLOAT])
        near = [f"{float(psnr(images[name], images[other]).mean()):.2f}" for other in (FLOAT, "simulated")]
        table.add_row(name, f"{median:.2f} ({low:.2f} .. {high:.2f})", f"{statistics.median(seconds):.3g}", *near)
    console = Console(width=120)
    console.print(versions())
    console.print(table)


if __name__ == "__main__":
    main()
