"""`ptq-diffusion plan [OVERRIDES]`: what an experiment would cost, before anything runs."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from rich.console import Console

from ptq_diffusion.command.composing import composed

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
        ValueError: there is no such option, or choices do not fit each other: a run would refuse them too.
    """
    arguments, cfg = composed(_parser(), words)
    # Import torch, which other commands do without.
    from ptq_diffusion.command.check.bounds import Room
    from ptq_diffusion.command.check.preflight import check
    from ptq_diffusion.command.experiment import goal_of
    from ptq_diffusion.command.plan.case import Case, OutlineShop
    from ptq_diffusion.command.plan.forecast import forecast
    from ptq_diffusion.command.plan.rates import Rates, measured_rates
    from ptq_diffusion.command.plan.sheet import csv_of, tables
    from ptq_diffusion.engine.runtime import Runtime
    from ptq_diffusion.engine.workshop import Workshop

    # Notes go beside the numbers.
    runtime = Runtime.of_options(cfg.runtime, Console(stderr=True))
    shop, goal, rates = OutlineShop(runtime), goal_of(cfg), None
    check(cfg, goal, shop, Room.unlimited())
    prediction = forecast(cfg, goal, shop)
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
        usage="ptq-diffusion plan [OPTION=VALUE ...] [--measure | --speed MACS] [--config-dir DIR] [--csv]",
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
