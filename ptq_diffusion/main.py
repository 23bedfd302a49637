"""The command line: turns its words into one command, and an error that the user can mend into one message."""

import sys
from collections.abc import Sequence

from ptq_diffusion import __version__
from ptq_diffusion.command.collect import collect_runs
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.convert import convert_checkpoint
from ptq_diffusion.command.doctor import examine
from ptq_diffusion.command.layers import print_layers
from ptq_diffusion.command.options import print_options
from ptq_diffusion.command.overrides import run_experiments
from ptq_diffusion.command.pipe import reader_may_leave
from ptq_diffusion.command.plan.command_line import print_plan
from ptq_diffusion.command.refusal import full_errors_asked_for, handed_on, refusal
from ptq_diffusion.command.storage.command_line import tend_store


def main() -> None:
    """Run the command; another error keeps its traceback, and HYDRA_FULL_ERROR=1 shows that of every error."""
    words, show_everything = sys.argv[1:], full_errors_asked_for()
    try:
        with reader_may_leave(), handed_on():
            command(words)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it was\n")
        sys.exit(130)
    except Exception as error:
        message = None if show_everything else refusal(error, words, CONF)
        if message is None:
            raise
        sys.exit(message)


def command(words: Sequence[str]) -> None:
    """Do what the words ask for: `[OVERRIDES]` run experiments; the first word names any other command.

    Raises:
        ValueError: the words do not fit their command.
    """
    match words:
        case ["collect", *rest]:
            collect_runs(rest)
        case ["convert", *rest]:
            convert_checkpoint(rest)
        case ["layers", *rest]:
            print_layers(rest)
        case ["options", *rest]:
            print_options(rest, CONF)
        case ["plan", *rest]:
            print_plan(rest)
        case ["store", *rest]:
            tend_store(rest)
        case ["doctor", *rest]:
            sys.exit(examine(rest))
        case ["--version", *_]:
            sys.stdout.write(f"ptq-diffusion {__version__}\n")
        case _:
            run_experiments(words)
