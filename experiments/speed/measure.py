"""Speed as ratios measured side by side: python experiments/speed/measure.py THREADS [RECORD.json]."""

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from diffusers.models.attention_processor import Attention
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.correction import FittedCorrection, NoiseStatistics
from ptq_diffusion.correction.diagnostics import fit_diagnosed
from ptq_diffusion.engine.chunks import chunks
from ptq_diffusion.engine.conditions import Unconditional
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser, Pixels
from ptq_diffusion.network import LayerSettings, QuantizedConv2d, QuantizedDenoiser, QuantizedLinear, quantize
from ptq_diffusion.sampler import DDIM, DDPM, sample
from ptq_diffusion.stage.drawing.corrected import draw_corrected
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.float_path import RecordOutputs
from ptq_diffusion.stage.noise import MeasureNoise

BATCH, STEPS, ROUNDS, FORWARDS = 64, 3, 9, 8
CPU, WALL = "CPU time", "wall time"
KINDS: Mapping[str, tuple[type[nn.Module], ...]] = {
    "activation quantizers": (LayerSettings,),
    "convolutions": (nn.Conv2d, QuantizedConv2d),
    "linear layers": (nn.Linear, QuantizedLinear),
    "group normalization": (nn.GroupNorm,),
    "SiLU": (nn.SiLU,),
    "attention without its layers": (Attention,),
}


@dataclass(frozen=True)
class Ratio:
    """Speed of `what` over that of `against`: the median over rounds of the ratio of times, and its quartiles."""

    what: str
    against: str
    clock: str
    low: float
    median: float
    high: float
    goal: str


GOALS = (
    ("our DDIM", "diffusers' DDIMPipeline", "1.0 or more"),
    ("our DDPM", "diffusers' DDPMPipeline", "1.0 or more"),
    ("quantized, W4A8", "our DDIM", "0.85 or more"),
    ("corrected, W4A8", "quantized, W4A8", "0.98 or more"),
    ("our DDIM, again", "our DDIM", "1: what noise is left"),
)


def main() -> None:
    """Print the ratios and where a forward spends its time, and write both down."""
    console = Console(width=120)
    keep_freed_memory()
    torch.set_num_threads(int(sys.argv[1]))
    model, quantized, fitted = variants()
    with torch.inference_mode():
        times = measured(contenders(model, quantized, fitted))
        spent = {"float": shares(model), "quantized, W4A8": shares(quantized)}
    found = [ratio(times, clock, *goal) for goal in GOALS for clock in (CPU, WALL)]
    console.print(ratio_table(found), share_table(spent))
    if len(sys.argv) == 3:
        seconds = {name: {clock: statistics.median(own) for clock, own in by.items()} for name, by in times.items()}
        setting = {"batch": BATCH, "steps": STEPS, "rounds": ROUNDS, "threads": int(sys.argv[1])}
        built = {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
        record = {"ratios": [asdict(row) for row in found], "shares": spent, "seconds": seconds} | setting | built
        Path(sys.argv[2]).write_text(json.dumps(record, indent=2) + "\n")


def variants() -> tuple[Denoiser, QuantizedDenoiser, FittedCorrection]:
    """The bundled model, its W4A8 copy and PTQD's terms, fitted on few samples: speed does not depend on how well."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=[f"sampler.steps={STEPS}", "correction=ptqd"])
    shop = Workshop(Runtime("cpu", progress=False))
    model = shop.model(cfg)
    steps = shop.table(cfg, model)
    with torch.no_grad():
        quantized = calibrated(cfg, model, shop)
        (chunk,) = chunks("noise", [0], 8, 8)
        m = RecordOutputs(model, steps, Unconditional())(chunk, torch.device("cpu"))["m"]
        work = MeasureNoise(quantized, steps, lambda _, step: m[step.i], Unconditional())
        statistics_of_noise = NoiseStatistics.of_tensors(work.owner, work(chunk, torch.device("cpu")))
    return model, quantized, fit_diagnosed(construct(cfg.correction), statistics_of_noise, steps)


def calibrated(cfg: DictConfig, model: Denoiser, shop: Workshop) -> QuantizedDenoiser:
    """The quantized copy, with the ranges of 8 float trajectories."""
    observations, table = shop.observations(cfg, model), shop.table(cfg, model)
    (chunk,) = chunks("calibration", [0], 8, 8)
    with observations.observing(model.network):
        for _ in sample(lambda x, s: model.predict(x, s).m, table, chunk.noise(model.shape)):
            pass
    plan = construct(cfg.bitwidth).plan(model.architecture(), table, None)
    return quantize(model, plan, observations, construct(cfg.quantizer.weight))


def contenders(
    model: Denoiser, quantized: QuantizedDenoiser, fitted: FittedCorrection
) -> dict[str, Callable[[], object]]:
    """Ways to draw BATCH images in STEPS steps, each with its noise and its conversion of the result."""
    (chunk,) = chunks("images", [0], BATCH, BATCH)
    ddim, ddpm = (s.table(model.scheduler_config) for s in (DDIM(STEPS, 1.0, {}), DDPM(STEPS, {})))
    drawing = Unconditional(), Pixels()
    works = {
        "our DDIM": DrawImages.of(model, ddim, *drawing),
        "our DDPM": DrawImages.of(model, ddpm, *drawing),
        "quantized, W4A8": DrawImages.of(quantized, ddim, *drawing),
        "corrected, W4A8": draw_corrected(quantized, fitted, *drawing),
        "our DDIM, again": DrawImages.of(model, ddim, *drawing),
    }
    own = {name: lambda work=work: work(chunk, torch.device("cpu")) for name, work in works.items()}
    ddim_pipeline = DDIMPipeline(model.network, DDIMScheduler.from_config(model.scheduler_config))
    ddpm_pipeline = DDPMPipeline(model.network, DDPMScheduler.from_config(model.scheduler_config))
    for pipeline in (ddim_pipeline, ddpm_pipeline):
        pipeline.set_progress_bar_config(disable=True)
    asked = {"batch_size": BATCH, "num_inference_steps": STEPS, "output_type": "np"}
    draw = torch.Generator().manual_seed(0)
    return own | {
        "diffusers' DDIMPipeline": lambda: ddim_pipeline(**asked, eta=1.0, generator=draw),
        "diffusers' DDPMPipeline": lambda: ddpm_pipeline(**asked, generator=draw),
    }


def measured(tasks: Mapping[str, Callable[[], object]]) -> dict[str, dict[str, list[float]]]:
    """Seconds of every task and clock, a value for each round; the tasks take turns, every other round backwards."""
    times: dict[str, dict[str, list[float]]] = {name: {CPU: [], WALL: []} for name in tasks}
    for task in tasks.values():
        task()
    for turn in range(ROUNDS):
        for name in list(tasks)[:: 1 if turn % 2 else -1]:
            cpu, wall = time.process_time(), time.perf_counter()
            tasks[name]()
            times[name][CPU].append(time.process_time() - cpu)
            times[name][WALL].append(time.perf_counter() - wall)
    return times


def ratio(times: Mapping[str, Mapping[str, list[float]]], clock: str, what: str, against: str, goal: str) -> Ratio:
    """Of two tasks, round by round."""
    pairs = zip(times[what][clock], times[against][clock], strict=True)
    low, median, high = statistics.quantiles([theirs / own for own, theirs in pairs], n=4)
    return Ratio(what, against, clock, low, median, high, goal)


def shares(model: Denoiser) -> dict[str, float]:
    """The share of a forward's CPU time that modules of a kind take, less what the modules within them take."""
    spent: dict[str, float] = defaultdict(float)
    x = torch.randn(BATCH, *model.shape, generator=torch.Generator().manual_seed(0))
    step = DDIM(20, 0, {}).table(model.scheduler_config)[10]
    with clocked(model.network, spent):
        for _ in range(FORWARDS):
            model.predict(x, step)
    return {kind: spent[kind] / sum(spent.values()) for kind in (*KINDS, "all else") if kind in spent}


@contextmanager
def clocked(network: nn.Module, spent: dict[str, float]) -> Iterator[None]:
    """Within this context `spent` grows by the CPU seconds of every kind of module."""
    inside: list[str] = []
    since = time.process_time()

    def stop() -> None:
        nonlocal since
        now = time.process_time()
        if inside:
            spent[inside[-1]] += now - since
        since = now

    def enter(kind: str) -> None:
        stop()
        inside.append(kind)

    def leave() -> None:
        stop()
        inside.pop()

    with ExitStack() as hooks:
        for module in network.modules():
            kind = next((name for name, types in KINDS.items() if isinstance(module, types)), "all else")
            before = module.register_forward_pre_hook(lambda *_, kind=kind: enter(kind))
            after = module.register_forward_hook(lambda *_: leave())
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield


def ratio_table(found: Sequence[Ratio]) -> Table:
    """A row for each comparison and clock."""
    table = Table(title=f"speed, batch {BATCH}, {STEPS} steps, {ROUNDS} rounds, {torch.get_num_threads()} threads")
    for heading in ("", "against", "clock", "ratio", "quartiles", "goal"):
        table.add_column(heading)
    for row in found:
        table.add_row(
            row.what, row.against, row.clock, f"{row.median:.3f}", f"{row.low:.3f} .. {row.high:.3f}", row.goal
        )
    return table


def share_table(spent: Mapping[str, Mapping[str, float]]) -> Table:
    """A column for each network."""
    table = Table("of a forward's CPU time", *spent)
    for kind in (*KINDS, "all else"):
        table.add_row(kind, *(f"{100 * own.get(kind, 0.0):.1f} %" for own in spent.values()))
    return table


if __name__ == "__main__":
    main()
