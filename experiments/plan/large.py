"""What `ptq-diffusion plan` says of five large networks, as a table: python experiments/plan/large.py [MODEL ...].

Configurations without weights are read from configs/; W4A8 and W4A4 with ptqd, 3 x 1,024 images.
"""

import csv
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile

from rich.console import Console

from ptq_diffusion.command.check.bounds import in_units
from ptq_diffusion.command.plan.numbers import duration, short

CONFIGS = Path(__file__).parent / "configs"
SPEED = 2e13
"""Multiply-accumulates a second that times are told at, assumed: 40 TFLOP/s, about one large GPU in TF32."""
MODELS: Mapping[str, tuple[str, ...]] = {
    "sd15": ("condition=prompts", "condition.guidance.scale=7.5", "sampler.steps=50"),
    "sdxl": ("condition=prompts", "condition.guidance.scale=5", "sampler=euler", "sampler.steps=50"),
    "dit_xl_2_256": ("condition=labels", "condition.guidance.scale=1.5", "sampler.steps=50"),
    "sd3_medium": ("condition=prompts", "condition.guidance.scale=7", "sampler=flow_euler", "sampler.steps=28"),
    "flux_dev": (
        "condition=prompts",
        "condition.guidance.scale=1",
        "condition.guidance.embedded=3.5",
        "sampler=flow_euler",
        "sampler.steps=28",
    ),
}
COMMON = ("micro_batch=8", "correction=ptqd", "model=diffusers", "--csv", f"--speed={SPEED:g}")


def planned(model: str, prompts: Path, *more: str) -> dict[tuple[str, str], float]:
    """The numbers of a plan, by subject and quantity.

    Raises:
        RuntimeError: the command failed; its message is on standard error.
    """
    words = [*MODELS[model], *COMMON, *more, f"model.path={CONFIGS / model}"]
    if "condition=prompts" in words:
        words.append(f"condition.source.path={prompts}")
    command = [sys.executable, "-m", "ptq_diffusion", "plan", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own words
    if done.returncode:
        raise RuntimeError(f"expected the plan of {model} to be made, got exit status {done.returncode}")
    return {(row["subject"], row["quantity"]): float(row["value"]) for row in csv.DictReader(done.stdout.splitlines())}


def row(model: str, numbers: Mapping[tuple[str, str], float], by_block: Mapping[tuple[str, str], float]) -> str:
    """A row: the folder, parameters and multiply-accumulates of a pass, then the columns of the table in the README."""
    float_bops = numbers["full precision", "bops_of_image"]
    savings = [f"{float_bops / numbers[plan, 'bops_of_image']:.1f}" for plan in ("w4a8", "w4a4")]
    asked = sum(value for (_, quantity), value in numbers.items() if quantity in ("float_passes", "quantized_passes"))
    cells = [
        f"`{model}`",
        short(numbers["network", "parameters"]),
        short(numbers["network", "macs"]),
        *savings,
        short(asked),
        in_units(numbers["experiment", "store"]),
        in_units(numbers["experiment", "device_memory"]),
        in_units(by_block["experiment", "device_memory"]),
        duration(numbers["experiment", "seconds"]),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a row for every model that is named, all by default."""
    say = Console(soft_wrap=True, highlight=False, markup=False).print
    with NamedTemporaryFile("w", suffix=".txt") as prompts:
        prompts.write("a photograph of an astronaut\n")
        prompts.flush()
        for model in sys.argv[1:] or MODELS:
            whole, by_block = (
                planned(model, Path(prompts.name), f"runtime.offload={way}") for way in ("none", "block")
            )
            say(row(model, whole, by_block))


if __name__ == "__main__":
    main()
