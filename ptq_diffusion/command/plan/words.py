"""`ptq-diffusion plan [OVERRIDES]`: what an experiment would cost, before anything runs."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from rich.console import Console

EXAMPLES = """examples:
  ptq-diffusion plan                                               the default experiment
  ptq-diffusion plan bitwidth=w4a4 images=5000                     with other options
  ptq-diffusion plan model=diffusers model.path=FOLDER             a folder, which needs no weights
  ptq-diffusion plan goal=export --csv > plan.csv                  every number of another goal
"""


def print_plan(words: Sequence[str]) -> None:
    """Print the forecast of an experiment.

    Args:
        words: the overrides of its configuration, and the options.

    Raises:
        FileNotFoundError: the model's folder lacks a configuration.
        ValueError: there is no such option, or choices do not fit each other.
    """
    arguments, overrides = _parser().parse_known_args(words)
    if odd := [word for word in overrides if word.startswith("-")]:
        raise ValueError(f"expected OPTION=VALUE or --csv, got {odd[0]}; ptq-diffusion plan --help shows examples")
    # Import torch, which other commands do without.
    from ptq_diffusion.command.check.schema import require_schema
    from ptq_diffusion.command.experiment import goal_of
    from ptq_diffusion.command.plan.case import OutlineShop
    from ptq_diffusion.command.plan.forecast import forecast
    from ptq_diffusion.command.plan.sheet import csv_of, tables
    from ptq_diffusion.command.python import compose
    from ptq_diffusion.engine.runtime import Runtime, quiet_libraries

    cfg = compose(*overrides)
    require_schema(cfg)
    quiet_libraries()
    runtime = Runtime(cfg.runtime.accelerator, cfg.runtime.progress, cfg.runtime.devices)
    prediction = forecast(cfg, goal_of(cfg), OutlineShop(runtime))
    if arguments.csv:
        sys.stdout.write(csv_of(prediction))
        return
    console = Console()
    for table in tables(prediction):
        console.print(table)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "ptq-diffusion plan",
        usage="ptq-diffusion plan [OPTION=VALUE ...] [--csv]",
        description="Parameters, bit operations, passes, store and memory of an experiment, before anything runs.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--csv", action="store_true", help="print every number, one a line")
    return parser
