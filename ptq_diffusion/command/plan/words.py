"""`ptq-diffusion plan [OVERRIDES]`: what an experiment would cost, before anything runs."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from rich.console import Console

EXAMPLES = """examples:
  ptq-diffusion plan                                               the default experiment
  ptq-diffusion plan bitwidth=w4a4 images=5000                     with other options
  ptq-diffusion plan model=diffusers model.path=FOLDER             a folder, which needs no weights
  ptq-diffusion plan --measure                                     and how long it takes here
  ptq-diffusion plan model=diffusers model.path=FOLDER --speed 2e13   or at a speed, without weights
  ptq-diffusion plan goal=export --csv > plan.csv                  every number of another goal
"""


def print_plan(words: Sequence[str]) -> None:
    """Print the forecast of an experiment; with --measure or --speed its times.

    Args:
        words: the overrides of its configuration, and the options.

    Raises:
        FileNotFoundError: the model's folder lacks a configuration.
        ValueError: there is no such option, or choices do not fit each other.
    """
    arguments, overrides = _parser().parse_known_args(words)
    if odd := [word for word in overrides if word.startswith("-")]:
        raise ValueError(
            f"expected OPTION=VALUE, --measure, --speed or --csv, got {odd[0]}; ptq-diffusion plan --help says more"
        )
    # Import torch, which other commands do without.
    from ptq_diffusion.command.check.schema import require_schema
    from ptq_diffusion.command.experiment import goal_of
    from ptq_diffusion.command.plan.case import Case, OutlineShop
    from ptq_diffusion.command.plan.forecast import forecast
    from ptq_diffusion.command.plan.rates import Rates, measured_rates
    from ptq_diffusion.command.plan.sheet import csv_of, tables
    from ptq_diffusion.command.python import compose
    from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
    from ptq_diffusion.engine.workshop import Workshop

    cfg = compose(*overrides)
    require_schema(cfg)
    quiet_libraries()
    runtime = Runtime(cfg.runtime.accelerator, cfg.runtime.progress, cfg.runtime.devices)
    shop, rates = OutlineShop(runtime), None
    prediction = forecast(cfg, goal_of(cfg), shop)
    if arguments.speed is not None:
        rates = Rates.of_speed(arguments.speed, prediction)
    elif arguments.measure:
        rates = measured_rates(cfg, Case(cfg, shop), Workshop(runtime))
    if arguments.csv:
        sys.stdout.write(csv_of(prediction, rates))
    else:
        Console().print(*tables(prediction, rates), sep="\n")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "ptq-diffusion plan",
        usage="ptq-diffusion plan [OPTION=VALUE ...] [--measure | --speed MACS] [--csv]",
        description="Parameters, bit operations, passes, store, memory and time of an experiment, before it runs.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    time = parser.add_mutually_exclusive_group()
    time.add_argument("--measure", action="store_true", help="tell times, by a few forwards of the networks here")
    time.add_argument("--speed", type=float, metavar="MACS", help="tell times of so many multiply-accumulates a second")
    parser.add_argument("--csv", action="store_true", help="print every number, one a line")
    return parser
