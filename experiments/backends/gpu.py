"""Forwards of a denoiser on a GPU, float and quantized in turn.

python -m experiments.backends.gpu [DEVICE] [FILE] [NAMES] [BATCHES] [SECONDS]
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from experiments.backends.case import Case, case
from experiments.backends.gpu_kernels import tf32
from experiments.backends.measure import Forward, half, ratios
from ptq_diffusion.model import Denoiser

NAMES = ("cifar10_ddpm", "unet_3g", "cifar10_dit", "cifar10_ldm")
BATCHES = (1, 64, 256)
SECONDS, LAST, FEWEST = 2.0, 70.0, 5
"""How long a batch is timed, when no other is begun, and the fewest rounds."""


@dataclass(frozen=True)
class Variant:
    """A way to compute one forward.

    Args:
        forward: from (x_t) to the output.
        tf32: whether convolutions and matrix products of float32 may round their operands to TensorFloat-32.
    """

    forward: Callable[[], Tensor]
    tf32: bool

    def __call__(self) -> Tensor:
        with tf32(self.tf32):
            return self.forward()


def on(case: Case, device: torch.device) -> Case:
    """The case on a device, its time a tensor there, so that a forward copies nothing to it."""
    condition = None if case.condition is None else case.condition.to(device)
    fields: dict[str, Any] = {"t": torch.tensor(float(case.step.t), device=device)}
    return replace(
        case,
        model=case.model.to(device),
        quantized=case.quantized.to(device),
        x_t=case.x_t.to(device),
        step=replace(case.step, **fields),
        condition=condition,
    )


def forward(case: Case, model: Denoiser, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """One forward of a model."""
    x_t = case.x_t.to(dtype)
    return lambda: model.predict(x_t, case.step, case.condition).m


def variants(case: Case) -> dict[str, Variant]:
    """From a case to forwards of it, the first of which all are compared with."""
    integer = case.quantized.to_backend("integer")
    eager = {
        "fp32": Variant(forward(case, case.model), False),
        "TF32": Variant(forward(case, case.model), True),
        "bf16": Variant(forward(case, half(case.model), torch.bfloat16), True),
        "ours, simulated, fp32": Variant(forward(case, case.quantized), False),
        "ours, simulated, TF32": Variant(forward(case, case.quantized), True),
        "ours, integer": Variant(forward(case, integer), True),
    }
    return eager | {f"{name}, graph": graph for name, one in eager.items() if (graph := captured(one, case))}


def captured(variant: Variant, case: Case) -> Variant | None:
    """The same forward as a CUDA graph; None on another device, or where something cannot be captured."""
    if case.x_t.device.type != "cuda":
        return None
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # Labels are checked on the host, which a graph cannot wait for.
    with mock.patch.object(torch.compiler, "is_exporting", lambda: True):
        with torch.cuda.stream(stream):
            for _ in range(3):
                variant()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(graph):
                output = variant()
        except RuntimeError as complaint:
            sys.stdout.write(f"{case.name}: no graph, {' '.join(str(complaint).split())[:120]}\n")
            torch.cuda.synchronize()
            return None

    def replayed() -> Tensor:
        graph.replay()
        return output

    return Variant(replayed, variant.tf32)


def synchronized(run: Forward, device: torch.device) -> float:
    """Seconds of a run, from an idle device to an idle one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def timed(runs: Mapping[str, Variant], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Seconds of every variant, a value for each round; they take turns, every other round backwards."""
    for run in (*runs.values(), *runs.values()):
        synchronized(run, device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    start, turns = time.perf_counter(), 0
    while turns < FEWEST or time.perf_counter() - start < seconds:
        for name in list(runs)[:: 1 if turns % 2 else -1]:
            times[name].append(synchronized(runs[name], device))
        turns += 1
    return times


def peak(run: Variant, device: torch.device) -> float:
    """Megabytes that a forward takes beside what is held before it."""
    if device.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def differences(runs: Mapping[str, Variant]) -> str:
    """Relative differences of outputs, root mean squares."""
    pairs = (
        ("ours, integer", "ours, simulated, fp32"),
        ("ours, simulated, TF32", "ours, simulated, fp32"),
        ("ours, simulated, fp32", "fp32"),
        ("TF32", "fp32"),
        ("bf16", "fp32"),
        ("ours, integer, graph", "ours, integer"),
    )
    parts = []
    for name, against in pairs:
        if name in runs:
            y, expected = runs[name]().double(), runs[against]().double()
            parts.append(f"{name} to {against} {float((y - expected).norm() / expected.norm()):.1e}")
    return "; ".join(parts)


def table(name: str, cells: Mapping[str, Mapping[int, str]], notes: Sequence[str]) -> str:
    """Markdown: a row for each variant, a column for each batch."""
    batches = sorted({batch for row in cells.values() for batch in row})
    lines = [f"`{name}`, W8A8: times as fast as fp32 (quartiles), ms, MB of a forward", ""]
    lines += ["| | " + " | ".join(f"batch {batch}" for batch in batches) + " |", "|---" * (1 + len(batches)) + "|"]
    lines += [f"| {row} | " + " | ".join(cells[row].get(batch, "") for batch in batches) + " |" for row in cells]
    return "\n".join([*lines, "", *notes, ""])


def measured(name: str, batches: Sequence[int], device: torch.device, seconds: float, late: float) -> str:
    """The table of one network; batches that would begin late are left out and named."""
    cells: dict[str, dict[int, str]] = {}
    start = time.perf_counter()
    made = case(name, 1)
    notes = [f"made in {time.perf_counter() - start:.1f} s"]
    for batch in batches:
        if time.perf_counter() > late:
            notes.append(f"batch {batch}: not measured, out of time")
            continue
        runs = variants(on(made.of_batch(batch), device))
        times = timed(runs, device, seconds)
        for variant, run in runs.items():
            low, median, high = ratios(times[variant], times["fp32"])
            milliseconds = 1000 * statistics.median(times[variant])
            cell = f"{median:.2f} ({low:.2f} .. {high:.2f}), {milliseconds:.3g}, {peak(run, device):.0f}"
            cells.setdefault(variant, {})[batch] = cell
        notes.append(f"batch {batch}, {len(times['fp32'])} rounds: {differences(runs)}")
    return table(name, cells, notes)


def heading(device: torch.device) -> str:
    """The versions and the card."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    return f"{card}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}\n"


def main() -> None:
    """Write the tables to a file, after every network, and to the terminal."""
    words = dict(enumerate(sys.argv[1:]))
    device, file = torch.device(words.get(0, "cuda")), Path(words.get(1, "gpu_timings.md"))
    names = words[2].split(",") if 2 in words else NAMES
    batches = [int(batch) for batch in words[3].split(",")] if 3 in words else BATCHES
    seconds, late = float(words.get(4, SECONDS)), time.perf_counter() + LAST
    text = heading(device)
    sys.stdout.write(text)
    for name in names:
        with torch.inference_mode():
            part = measured(name, batches, device, seconds, late)
        text += f"\n{part}"
        sys.stdout.write(f"\n{part}")
        sys.stdout.flush()
        file.write_text(text)


if __name__ == "__main__":
    main()
