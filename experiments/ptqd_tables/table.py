"""PTQD's published tables beside ours: python experiments/ptqd_tables/table.py [OUTPUTS] [--speed MACS].

A row is a pair of bits and method; published numbers are those of ../published.yaml, ours those of the runs below
OUTPUTS/runs/ptqd_tables. A row that was not run says nothing; below each table stands what its runs need and cost.
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

import ptq_diffusion as pd
from ptq_diffusion.command.check.bounds import in_units
from ptq_diffusion.command.experiment import goal_of
from ptq_diffusion.command.plan.case import OutlineShop
from ptq_diffusion.command.plan.forecast import forecast
from ptq_diffusion.command.plan.numbers import duration, short
from ptq_diffusion.command.plan.rates import Rates
from ptq_diffusion.engine.runtime import Runtime

HERE = Path(__file__).parent
CONFIGS, PLANNED = HERE / "configs", HERE.parent / "plan" / "configs"
"""Folders of networks' configurations at full size: of latent diffusion, and of those that diffusers publishes."""
FLOAT = "FP", "full_precision"
BITS = {"w8a8": "W8A8", "w4a8": "W4A8"}
STEP_MIXED = "step MP"
SPEED = 2e13
"""Multiply-accumulates a second that costs are told at: 40 TFLOP/s, about what one large GPU reaches in TF32."""
Row = tuple[str, str]
"""Bits and method."""


@dataclass(frozen=True)
class Bench:
    """One table of the paper.

    Args:
        title: of the table.
        experiment: the preset that runs its rows.
        published: what the rows of published.yaml have in common.
        settings: what our runs of it have in common, dotted.
        checkpoint: that full-size rows need.
        configs: the folder of the network's configurations, for its cost.
        prompts: how many captions a row draws with; 0 of a table without any.
    """

    title: str
    experiment: str
    published: Mapping[str, Any]
    settings: Mapping[str, Any]
    checkpoint: str
    configs: Path
    prompts: int = 0

    @property
    def command(self) -> str:
        """The command that runs its rows."""
        prompts = " condition.source.path=FILE" if self.prompts else ""
        return f"ptq-diffusion -m experiment={self.experiment} model.path=FOLDER{prompts}"


CIN = "cin256-v2 of latent diffusion (LDM-4, 400 M), converted"
IMAGENET = "imagenet256_ldm4"
BENCHES = (
    Bench(
        "ImageNet 256, LDM-4, 250 steps, eta 1, guidance 1.5",
        "ptqd_imagenet_250",
        {"bench": IMAGENET, "steps": 250},
        {"sampler.eta": 1.0},
        CIN,
        CONFIGS / "imagenet",
    ),
    Bench(
        "ImageNet 256, LDM-4, 20 steps, eta 0, guidance 3",
        "ptqd_imagenet_20",
        {"bench": IMAGENET, "steps": 20, "eta": 0.0},
        {"sampler.eta": 0.0},
        CIN,
        CONFIGS / "imagenet",
    ),
    Bench(
        "ImageNet 256, LDM-4, 20 steps, eta 1, guidance 3",
        "ptqd_imagenet_20",
        {"bench": IMAGENET, "steps": 20, "eta": 1.0},
        {"sampler.eta": 1.0},
        CIN,
        CONFIGS / "imagenet",
    ),
    Bench(
        "LSUN-Bedroom 256, LDM-4, 200 steps, eta 1",
        "ptqd_bedroom",
        {"bench": "lsun_bedroom_ldm4"},
        {"sampler.eta": 1.0},
        "lsun_beds256 of latent diffusion (LDM-4, 274 M), converted",
        CONFIGS / "bedroom",
    ),
    Bench(
        "LSUN-Church 256, LDM-8, 200 steps, eta 0",
        "ptqd_church",
        {"bench": "lsun_church_ldm8", "steps": 200},
        {"sampler.eta": 0.0},
        "lsun_churches256 of latent diffusion (LDM-8, 295 M), converted",
        CONFIGS / "church",
    ),
    Bench(
        "Ablation: k, the variance schedule, the bias; ImageNet LDM-4, 20 steps, eta 1",
        "ptqd_terms",
        {"bench": IMAGENET, "steps": 20, "eta": 1.0},
        {"sampler.eta": 1.0},
        CIN,
        CONFIGS / "imagenet",
    ),
    Bench(
        "ImageNet 256, DiT-XL/2, 250 steps of DDPM with its learned variance, guidance 1.5",
        "ptqd_dit",
        {"bench": "imagenet256_dit_xl2", "sampler": "ddpm", "steps": 250},
        {"sampler.scheduler.variance_type": "learned_range"},
        "facebook/DiT-XL-2-256, 675 M",
        PLANNED / "dit_xl_2_256",
    ),
    Bench(
        "COCO, Stable Diffusion 1.5, 50 steps, eta 0, guidance 7.5; published of 1.4",
        "ptqd_sd15",
        {"bench": "coco_sd14"},
        {"sampler.eta": 0.0},
        "stable-diffusion-v1-5, 860 M, and 10,000 captions of COCO",
        PLANNED / "sd15",
        10_000,
    ),
)


def published(bench: Bench) -> dict[Row, float]:
    """The published FID of every row of a table; one that leaves an option out counts for all of its values."""
    rows = yaml.safe_load((HERE.parent / "published.yaml").read_text())
    fits = [row for row in rows if all(row.get(key, value) == value for key, value in bench.published.items())]
    return {(row["bits"], row["method"]): row["fid"] for row in fits if row["fid"] is not None}


def ours(bench: Bench, outputs: Path) -> dict[Row, float]:
    """Our FID of every row that was run, to the reference's images, or to the float model's where there are none."""
    rows: dict[Row, float] = {}
    folder = outputs / "runs" / "ptqd_tables" / bench.experiment.removeprefix("ptqd_")
    for path in sorted(folder.glob("**/report.json")):
        cfg = yaml.safe_load((path.parent / "config.yaml").read_text())
        if all(_option(cfg, key) == value for key, value in bench.settings.items()):
            bits = BITS.get(cfg["labels"]["bitwidth"], STEP_MIXED)
            by_variant = {row["variant"]: row["fid"] for row in json.loads(path.read_text())["rows"]}
            rows |= {FLOAT: by_variant["full_precision"], (bits, cfg["labels"]["correction"]): by_variant["corrected"]}
    return rows


def table(bench: Bench, outputs: Path) -> Table:
    """A line for every row that was published or run, with the increase over each one's own full precision."""
    theirs, mine = published(bench), ours(bench, outputs)
    sheet = Table(title=bench.title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1))
    for name in ("bits", "method"):
        sheet.add_column(name)
    for name in ("published", "over float", "ours", "over float"):
        sheet.add_column(name, justify="right")
    for row in dict.fromkeys([*theirs, *mine]):
        sheet.add_row(*row, *_cells(theirs, row), *_cells(mine, row))
    return sheet


def cost(bench: Bench, speed: float) -> Iterator[str]:
    """What a full-size row needs and, by `ptq-diffusion plan`, costs on one device of this speed."""
    words = [f"experiment={bench.experiment}", f"model.path={bench.configs}", "bitwidth=w4a8", "correction=ptqd"]
    words += [f"{key}={value}" for key, value in bench.settings.items()]
    with TemporaryDirectory() as folder:
        captions = Path(folder) / "captions.txt"
        captions.write_text("".join(f"caption {place}\n" for place in range(bench.prompts)))
        words += [f"condition.source.path={captions}"] if bench.prompts else []
        cfg = pd.compose(*words, "runtime.accelerator=cpu", "logger=none")
        prediction = forecast(cfg, goal_of(cfg), OutlineShop(Runtime("cpu", False)))
    total = prediction.total
    passes = total.float_passes + total.quantized_passes
    seconds = duration(Rates.of_speed(speed, prediction).seconds(total))
    yield f"needs {bench.checkpoint}: {bench.command}"
    yield (
        f"a row of {len(cfg.seeds)} x {cfg.images:,} images: {short(passes)} passes of {short(prediction.macs)} "
        f"multiply-accumulates, {seconds} at {speed:.3g} a second, {in_units(prediction.device_memory)} of a GPU, "
        f"{in_units(prediction.store)} of store"
    )


def _cells(rows: Mapping[Row, float], row: Row) -> tuple[str, str]:
    if row not in rows:
        return "", ""
    over = f"{rows[row] - rows[FLOAT]:+.2f}" if FLOAT in rows and row != FLOAT else ""
    return f"{rows[row]:.2f}", over


def _option(cfg: Mapping[str, Any], key: str) -> object:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def main(words: Sequence[str] | None = None) -> None:
    """Print every table, and below each what a full-size row costs."""
    parser = ArgumentParser(description="PTQD's published tables beside ours")
    parser.add_argument("outputs", type=Path, nargs="?", default=Path("outputs"))
    parser.add_argument("--speed", type=float, default=SPEED, help="multiply-accumulates a second of one GPU")
    arguments = parser.parse_args(words)
    console = Console(highlight=False, soft_wrap=True)
    for bench in BENCHES:
        console.print(table(bench, arguments.outputs))
        console.print(*cost(bench, arguments.speed), sep="\n", markup=False)


if __name__ == "__main__":
    main()
