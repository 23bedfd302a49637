"""`ptq-diffusion layers [OVERRIDES]`: the sites of a network, with their work and the bits that a plan gives them."""

import csv
import io
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ptq_diffusion.command.composing import composed
from ptq_diffusion.command.plan.numbers import short

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from ptq_diffusion.command.plan.case import Case

EXAMPLES = """examples:
  ptq-diffusion layers                                      of the default experiment
  ptq-diffusion layers model=cifar10_ldm bitwidth=w4a4      of another model with other bits
  ptq-diffusion layers --csv > layers.csv                   the same for a spreadsheet, without rounding
  ptq-diffusion layers backend=integer bitwidth=w4a4        and the layers that a backend cannot compute, with reasons
"""
TITLES = ("site", "kind", "role", "weight", "MACs", "W", "A")
EDGES, BETWEEN = 2, 2
"""Letters at the edges of the table, and beside each column."""
UNKNOWN = "-"
"""Bits that are not known before something is measured."""
MEASURED = "bits are chosen from measurements when the experiment runs: goal=plan makes them"


@dataclass(frozen=True)
class Row:
    """One site of a network.

    Args:
        name: its dotted name.
        kind: conv2d, linear or matmul.
        role: first, inner, last or attention.
        shape: of the weight, such as 64x3x3x3; empty for a product of attention.
        macs: multiply-accumulates of one forward of one sample.
        weight: bits of the weight at every step, one number where they are the same at all.
        activation: bits of the input, likewise.
        obstacle: why the backend cannot compute it, in words; empty where it can.
    """

    name: str
    kind: str
    role: str
    shape: str
    macs: int
    weight: tuple[int, ...]
    activation: tuple[int, ...]
    obstacle: str


def print_layers(words: Sequence[str]) -> None:
    """Print the sites of the network that an experiment quantizes.

    Args:
        words: the overrides of its configuration, and --csv.

    Raises:
        FileNotFoundError: there is no such model, or it has no weights, which other backends than simulation read.
        ValueError: there is no such option, or choices do not fit each other.
    """
    arguments, cfg = composed(_parser(), words)
    rows = list(sites_of(cfg))
    if arguments.csv:
        sys.stdout.write(csv_of(rows))
        return
    console = Console()
    console.print(table_of(rows, console.width))
    if not rows[0].weight:
        console.print(MEASURED)
    refused = [row for row in rows if row.obstacle]
    if refused:
        console.print(f"The backend cannot compute {len(refused)} of them:", highlight=False)
    for row in refused:
        console.print(f"  {row.name}: {row.obstacle}", markup=False, highlight=False, soft_wrap=True)


def sites_of(cfg: "DictConfig") -> Iterator[Row]:
    """The sites of a composed experiment, in the network's order; a folder needs no weights in simulation."""
    # Import torch, which other commands do without.
    from ptq_diffusion.bitwidth.evidence import Evidence
    from ptq_diffusion.command.check.bounds import Room
    from ptq_diffusion.command.check.preflight import check
    from ptq_diffusion.command.plan.case import Case, OutlineShop
    from ptq_diffusion.engine.runtime import Runtime
    from ptq_diffusion.stage.planning.additions import policy_of
    from ptq_diffusion.stage.quantize import Quantize

    shop = OutlineShop(Runtime("cpu", False, 1))
    check(cfg, Quantize, shop, Room.unlimited())
    model = shop.model(cfg)
    table = shop.table(cfg, model)
    policy = policy_of(cfg, model, table)
    architecture = model.architecture(table)
    plan = policy.plan(architecture, table, None) if policy.reads is Evidence.NOTHING else None
    obstacles = obstacles_of(cfg, Case(cfg, shop))
    for site in architecture.sites:
        shape = "x".join(map(str, site.weight_shape)) if site.weighted else ""
        weight, activation = (plan.weight[site.name], plan.activation[site.name]) if plan else ((), ())
        obstacle = obstacles.get(site.name, "")
        yield Row(site.name, site.kind.value, site.role.value, shape, site.macs, weight, activation, obstacle)


def obstacles_of(cfg: "DictConfig", case: "Case") -> Mapping[str, str]:
    """Why the backend cannot compute some sites, by their names.

    Where bits are measured those of the dearest offer stand for them.
    """
    from ptq_diffusion.command.plan.one_row import quantized_by_one_row
    from ptq_diffusion.engine.factory import construct
    from ptq_diffusion.engine.runtime import Runtime
    from ptq_diffusion.engine.workshop import Workshop
    from ptq_diffusion.model.site import products_by_attention
    from ptq_diffusion.network.backend import Simulated

    backend = construct(cfg.backend)
    if isinstance(backend, Simulated):  # Computes all; weights need not be there.
        return {}
    quantized = quantized_by_one_row(cfg, case, Workshop(Runtime("cpu", False, 1)))
    obstacles = quantized.obstacles(backend)
    products = {site.name: name for name, sites in products_by_attention(case.model.sites()).items() for site in sites}
    return obstacles | {site: obstacles[name] for site, name in products.items() if name in obstacles}


def table_of(rows: Sequence[Row], width: int) -> Table:
    """The rows as a table of some letters at most; names that are longer than their column go on after a dot."""
    cells = [
        (row.kind, row.role, row.shape, short(row.macs), *map(_span, (row.weight, row.activation))) for row in rows
    ]
    total = ("", "", "", short(sum(row.macs for row in rows)), "", "")
    others = [max(map(len, column)) for column in zip(TITLES[1:], total, *cells, strict=True)]
    room = width - EDGES - BETWEEN * len(TITLES) - sum(others)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(TITLES[0], overflow="fold")
    for title in TITLES[1:4]:
        table.add_column(title, no_wrap=True)
    for title in TITLES[4:]:
        table.add_column(title, justify="right", no_wrap=True)
    for row, cell in zip(rows, cells, strict=True):
        table.add_row("\n".join(_folded(row.name, room)), *cell)
    table.add_row(f"{len(rows)} sites", *total, style="bold")
    return table


def _folded(name: str, room: int) -> Iterator[str]:
    """The lines of a dotted name, which end after a dot."""
    line = ""
    for part in re.findall(r"[^.]*\.|[^.]+$", name):
        if line and len(line) + len(part) > room:
            yield line
            line = "  "
        line += part
    yield line


def csv_of(rows: Sequence[Row]) -> str:
    """The rows as comma-separated values with a head; bits that change have a number for every step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["site", "kind", "role", "weight_shape", "macs", "weight_bits", "activation_bits", "obstacle"])
    for row in rows:
        bits = (" ".join(map(str, numbers)) or UNKNOWN for numbers in (row.weight, row.activation))
        writer.writerow([row.name, row.kind, row.role, row.shape, row.macs, *bits, row.obstacle])
    return text.getvalue()


def _span(bits: Sequence[int]) -> str:
    if not bits:
        return UNKNOWN
    return str(bits[0]) if min(bits) == max(bits) else f"{min(bits)}-{max(bits)}"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "ptq-diffusion layers",
        usage="ptq-diffusion layers [OPTION=VALUE ...] [--config-dir DIR] [--csv]",
        description="The sites of the network that an experiment quantizes: kind, role, shape, work and bits of each, "
        "and why a backend cannot compute it.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")
    return parser
