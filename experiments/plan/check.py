"""What `ptq-diffusion plan` predicts beside what a run then takes: python experiments/plan/check.py FOLDER [ROUNDS].

The network has ten times the parameters of the bundled one and random weights. Plan and run take turns, so that both
see the same machine; each is a process of its own, whose largest resident set the system tells when it ends.
"""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from rich.console import Console

STAGES = (
    *("trajectories", "calibrate", "quantize", "float_path", "fit"),
    *("samples_full_precision", "samples_quantized", "samples_corrected", "evaluate"),
)
OPTIONS = (
    "goal=evaluate correction=rescaled_matched bitwidth=w4a8 sampler.steps=2 images=8 seeds=[0] micro_batch=8 "
    "calibration.images=8 noise.images=16 judging.replicates=5 feature=pixels model=diffusers logger=none "
    "runtime.accelerator=cpu runtime.progress=false"
).split()


def prepare(folder: Path) -> int:
    """A DDPM of 16x16 images with random weights, saved by its pipeline; its parameters."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=16,
        layers_per_block=2,
        block_out_channels=(112, 224, 224),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
    return sum(parameter.numel() for parameter in network.parameters())


def process(*words: str) -> tuple[str, float]:
    """What a command prints, and the bytes that its process held at most."""
    command = [sys.executable, "-m", "ptq_diffusion", *words]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert started.stdout is not None
    text = started.stdout.read()
    _, status, usage = os.wait4(started.pid, 0)
    if status != 0:
        raise RuntimeError(f"expected {words[0]} to end well")
    return text, usage.ru_maxrss * 1024  # KiB on Linux


def planned(words: Sequence[str]) -> dict[tuple[str, str], float]:
    """The numbers of a plan, by subject and quantity."""
    text, _ = process("plan", *words, "--measure", "--csv")
    return {(row["subject"], row["quantity"]): float(row["value"]) for row in csv.DictReader(text.splitlines())}


def measured(words: Sequence[str], outputs: Path) -> dict[tuple[str, str], float]:
    """The same numbers of a run, by the files that it leaves and the memory that it held."""
    _, memory = process(*words, f"outputs={outputs}")
    numbers = {("experiment", "memory"): memory}
    for stage in STAGES:
        files = [path for path in (outputs / "store" / stage).rglob("*") if path.is_file()]
        numbers[stage, "kept"] = float(sum(file.stat().st_size for file in files))
        numbers[stage, "seconds"] = float(next((outputs / "store" / stage).glob("*.seconds")).read_text())
    numbers["experiment", "store"] = sum(size for (_, quantity), size in numbers.items() if quantity == "kept")
    return numbers


def main() -> None:
    """Print predicted over measured, the medians of all rounds, and write check.csv beside this."""
    say = Console(soft_wrap=True, highlight=False).print
    folder, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    say(f"{prepare(folder / 'model'):,} parameters")
    words = [*OPTIONS, f"model.path={folder / 'model'}"]
    ratios: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        shutil.rmtree(folder / "outputs", ignore_errors=True)
        plan, run = planned(words), measured(words, folder / "outputs")
        for key in sorted(plan.keys() & run.keys()):
            if plan[key]:
                ratios.setdefault(key, []).append((plan[key], run[key]))
        asking = {key for key in plan.keys() & run.keys() if key[1] == "seconds" and plan[key]}
        passes = [sum(numbers[key] for key in asking) for numbers in (plan, run)]
        ratios.setdefault(("experiment", "seconds of passes"), []).append((passes[0], passes[1]))
    with (Path(__file__).parent / "check.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["subject", "quantity", "predicted", "measured", "ratio"])
        for (subject, quantity), pairs in ratios.items():
            predicted, actual = (median(pair[place] for pair in pairs) for place in (0, 1))
            ratio = median(pair[0] / pair[1] for pair in pairs)
            writer.writerow([subject, quantity, f"{predicted:.6g}", f"{actual:.6g}", f"{ratio:.3f}"])
            say(f"{subject}, {quantity}: {predicted:.6g} predicted, {actual:.6g} measured, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
