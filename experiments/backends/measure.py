"""Forwards of a denoiser by several backends, side by side.

python -m experiments.backends.measure NAME THREADS BATCHES [VARIANT ...]
"""

import copy
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from experiments.backends.case import NAMES, Case, case
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.model import Denoiser, DiffusersDenoiser
from ptq_diffusion.network import save_quantized
from ptq_diffusion.network.saving import FILES

Forward = Callable[[], object]
SECONDS, FEWEST = 3.0, 5
"""How long each variant is timed at least, and in how many rounds."""
PAUSE = 0.005
"""Seconds between two forwards of several threads."""
PACKAGES = ("torch", "diffusers", "onnxruntime", "openvino", "nncf")


def eager(case: Case) -> Forward:
    """The float network as it is."""
    return lambda: case.model.predict(case.x_t, case.step, case.condition)


def compiled(case: Case) -> Forward:
    """The float network through torch.compile, its weights frozen."""
    return _asked(case, _compiled(case.model))


def bfloat16(case: Case) -> Forward:
    """The network and its states in bfloat16."""
    return _asked(case, half(case.model), torch.bfloat16)


def compiled_bfloat16(case: Case) -> Forward:
    """The same through torch.compile."""
    return _asked(case, _compiled(half(case.model)), torch.bfloat16)


def simulated(case: Case) -> Forward:
    """The quantized network in float arithmetic."""
    return lambda: case.quantized.predict(case.x_t, case.step, case.condition)


def integer(case: Case) -> Forward:
    """The quantized network in 8-bit products."""
    quantized = case.quantized.to_backend("integer")
    return lambda: quantized.predict(case.x_t, case.step, case.condition)


VARIANTS: dict[str, Callable[[Case], Forward]] = {
    "fp32": eager,
    "fp32, compiled": compiled,
    "bf16": bfloat16,
    "bf16, compiled": compiled_bfloat16,
    "ours, simulated": simulated,
    "ours, integer": integer,
    "fp32, again": eager,
}
"""From a case to one forward of it; the first is what all are compared with, the last tells what noise is left."""


def half(model: Denoiser) -> Denoiser:
    """A copy in bfloat16, as `model.dtype` makes one."""
    assert isinstance(model, DiffusersDenoiser)
    network = copy.deepcopy(model.network).to(torch.bfloat16)
    folder = model.scheduler_config, model.folder_classes
    return DiffusersDenoiser(network, model.family, model.config, *folder, torch.bfloat16)


def _compiled(model: Denoiser) -> Denoiser:
    network: nn.Module = copy.copy(model.network)
    network.forward = torch.compile(network.forward, dynamic=False)
    return model.with_network(network)


def _asked(case: Case, model: Denoiser, dtype: torch.dtype = torch.float32) -> Forward:
    x_t = case.x_t.to(dtype)
    return lambda: model.predict(x_t, case.step, case.condition)


def measured(forwards: Mapping[str, Forward], seconds: float = SECONDS) -> dict[str, list[float]]:
    """Seconds of every forward, a value for each round; they take turns, every other round backwards.

    Args:
        forwards: by name.
        seconds: for which each is timed at least.
    """
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for forward in forwards.values():
        forward()
        forward()
    start = time.perf_counter()
    while len(times["fp32"]) < FEWEST or time.perf_counter() - start < seconds * len(forwards):
        for name in list(forwards)[:: 1 if len(times["fp32"]) % 2 else -1]:
            # Threads of a pool that wait in a loop for more work have gone to sleep by then.
            time.sleep(PAUSE if torch.get_num_threads() > 1 else 0.0)
            begin = clock()
            forwards[name]()
            times[name].append(clock() - begin)
    return times


def clock() -> float:
    """CPU time of one thread, on which other processes leave little trace; wall time of several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def ratios(times: Sequence[float], against: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles over rounds of how many times faster something is."""
    low, median, high = statistics.quantiles([theirs / ours for ours, theirs in zip(times, against, strict=True)], n=4)
    return low, median, high


def timings(name: str, batches: Iterable[int], variants: Mapping[str, Callable[[Case], Forward]]) -> Table:
    """A row for each variant, a column for each batch."""
    table = Table(title=f"{name}, W8A8: times as fast as fp32 (quartiles), ms; {torch.get_num_threads()} threads")
    table.add_column("")
    rows: dict[str, list[str]] = {variant: [] for variant in variants}
    first = case(name, 1)
    for batch in batches:
        table.add_column(f"batch {batch}")
        asked = first.of_batch(batch)
        forwards = {variant: make(asked) for variant, make in variants.items()}
        times = measured(forwards)
        for variant in variants:
            low, median, high = ratios(times[variant], times["fp32"])
            milliseconds = 1000 * statistics.median(times[variant])
            rows[variant].append(f"{median:.2f} ({low:.2f} .. {high:.2f}), {milliseconds:.3g}")
    for variant, cells in rows.items():
        table.add_row(variant, *cells)
    return table


def sizes(name: str) -> Table:
    """Bytes on disk of the quantized network's files, against its parameters in float32."""
    table = Table("bits W/A", "bytes", "float / this", title=f"{name}: bytes on disk")
    for bits in ("w8a8", "w4a8"):
        made = case(name, 1, bits)
        base = 4 * sum(parameter.numel() for parameter in made.model.network.parameters())
        with tempfile.TemporaryDirectory() as folder:
            save_quantized(made.quantized, Path(folder))
            size = sum((Path(folder) / file).stat().st_size for file in FILES)
        table.add_row(bits, f"{size:,}", f"{base / size:.2f}")
    return table


def processor(cpuinfo: str) -> str:
    """The processor in words: the name of its model, or where that tells nothing its vendor, family and model.

    Args:
        cpuinfo: the content of /proc/cpuinfo, empty where there is none.
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    name = facts.get("model name", "")
    if any(digit.isdigit() for digit in name):
        return name
    numbers = [
        f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model", "stepping") if key in facts
    ]
    words = filter(None, (facts.get("vendor_id"), name, *numbers))
    return " ".join(words) or platform.processor() or platform.machine()


def versions() -> str:
    """The versions of what computes, and the processor."""
    lines = []
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    cpuinfo = Path("/proc/cpuinfo")
    name = processor(cpuinfo.read_text() if cpuinfo.is_file() else "")
    return ", ".join([*lines, name, torch.backends.cpu.get_cpu_capability()])


def main() -> None:
    """Print the tables of one network and the peak of memory."""
    name, threads, batches, *chosen = sys.argv[1:]
    if name not in NAMES:
        raise SystemExit(f"expected one of {', '.join(NAMES)}, got {name}")
    keep_freed_memory()
    torch.set_num_threads(int(threads))
    torch._inductor.config.freezing = True
    console = Console(width=120)
    console.print(versions())
    variants = {variant: VARIANTS[variant] for variant in chosen or VARIANTS}
    with torch.inference_mode():
        console.print(timings(name, map(int, batches.split(",")), variants))
    console.print(sizes(name))
    console.print(f"peak of memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
