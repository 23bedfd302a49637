"""`ptq-diffusion layers [OVERRIDES]`: the sites of a network, with their work and the bits that a plan gives them."""

import csv
import io
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

EXAMPLES = """examples:
  ptq-diffusion layers                                      of the default experiment
  ptq-diffusion layers model=cifar10_ldm bitwidth=w4a4      of another model with other bits
  ptq-diffusion layers --csv > layers.csv                   the same for a spreadsheet, without rounding
"""
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
    """

    name: str
    kind: str
    role: str
    shape: str
    macs: int
    weight: tuple[int, ...]
    activation: tuple[int, ...]


def print_layers(words: Sequence[str]) -> None:
    """Print the sites of the network that an experiment quantizes.

    Args:
        words: the overrides of its configuration, and --csv.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: there is no such option, or choices do not fit each other.
    """
    arguments, overrides = _parser().parse_known_args(words)
    if odd := [word for word in overrides if word.startswith("-")]:
        raise ValueError(f"expected OPTION=VALUE or --csv, got {odd[0]}; ptq-diffusion layers --help says more")
    rows = list(sites_of(overrides))
    if arguments.csv:
        sys.stdout.write(csv_of(rows))
        return
    console = Console()
    console.print(table_of(rows))
    if not rows[0].weight:
        console.print(MEASURED)


def sites_of(overrides: Sequence[str]) -> Iterator[Row]:
    """The sites of a composed experiment, in the network's order; a folder needs no weights."""
    # Import torch, which other commands do without.
    from ptq_diffusion.bitwidth.evidence import Evidence
    from ptq_diffusion.command.check.schema import require_schema
    from ptq_diffusion.command.plan.case import OutlineShop
    from ptq_diffusion.command.python import compose
    from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
    from ptq_diffusion.stage.planning.additions import policy_of

    cfg = compose(*overrides)
    require_schema(cfg)
    quiet_libraries()
    shop = OutlineShop(Runtime("cpu", False, 1))
    model = shop.model(cfg)
    table = shop.table(cfg, model)
    policy = policy_of(cfg, model, table)
    architecture = model.architecture(table)
    policy.check(architecture, table)
    plan = policy.plan(architecture, table, None) if policy.reads is Evidence.NOTHING else None
    for site in architecture.sites:
        shape = "x".join(map(str, site.weight_shape)) if site.weighted else ""
        bits = (plan.weight[site.name], plan.activation[site.name]) if plan else ((), ())
        yield Row(site.name, site.kind.value, site.role.value, shape, site.macs, *bits)


def table_of(rows: Sequence[Row]) -> Table:
    """The rows as a table of at most 80 columns; names are folded where they are longer."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("site", overflow="fold", ratio=1)
    for title in ("kind", "role", "weight"):
        table.add_column(title, no_wrap=True)
    for title in ("MACs", "W", "A"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name, row.kind, row.role, row.shape, _short(row.macs), *map(_span, (row.weight, row.activation))
        )
    total = sum(row.macs for row in rows)
    table.add_row(f"{len(rows)} sites", "", "", "", _short(total), "", "", style="bold")
    return table


def csv_of(rows: Sequence[Row]) -> str:
    """The rows as comma-separated values with a head; bits that change have a number for every step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["site", "kind", "role", "weight_shape", "macs", "weight_bits", "activation_bits"])
    for row in rows:
        bits = (" ".join(map(str, numbers)) or UNKNOWN for numbers in (row.weight, row.activation))
        writer.writerow([row.name, row.kind, row.role, row.shape, row.macs, *bits])
    return text.getvalue()


def _span(bits: Sequence[int]) -> str:
    if not bits:
        return UNKNOWN
    return str(bits[0]) if min(bits) == max(bits) else f"{min(bits)}-{max(bits)}"


def _short(number: float) -> str:
    """A number of three digits with a unit, such as 12.3M."""
    for unit in ("", "K", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.4g}T"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "ptq-diffusion layers",
        usage="ptq-diffusion layers [OPTION=VALUE ...] [--csv]",
        description="The sites of the network that an experiment quantizes: kind, role, shape, work and bits of each.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")
    return parser
