"""The command line: compose a configuration and make its goal, collect many reports, list options, or examine."""

import sys
from argparse import ArgumentParser
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ptq_diffusion import __version__
from ptq_diffusion.command.refusal import PastHydra, full_errors_asked_for, handed_on, refusal

HERE = Path(__file__).parent
CONF = next(folder for folder in (HERE / "conf", HERE.parent / "conf") if folder.is_dir())


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def experiment(cfg: DictConfig) -> None:
    """Make the goal of one composed experiment."""
    from ptq_diffusion.command.experiment import run
    from ptq_diffusion.command.failure import recorded

    asked = HydraConfig.get()
    try:
        with recorded(cfg, asked):
            run(cfg)
    except Exception as error:
        if asked.mode == RunMode.MULTIRUN:
            raise
        raise PastHydra(error) from error


def collect_runs(arguments: list[str]) -> None:
    """`ptq-diffusion collect FOLDER [--against CORRECTION]`."""
    from rich.console import Console

    from ptq_diffusion.report.sweep.collect import collect

    parser = ArgumentParser("ptq-diffusion collect", description="One table and one figure of many runs.")
    parser.add_argument("folder", type=Path, help="where runs lie, such as outputs/runs")
    parser.add_argument(
        "--against",
        metavar="CORRECTION",
        help="also compare the corrections of each cell with this one: a name, none or best",
    )
    given = parser.parse_args(arguments)
    collected = collect(given.folder, given.against)
    console = Console(soft_wrap=True)
    console.print(collected.table)
    console.print(collected.verdict)
    for path in collected.paths:
        console.print(str(path), markup=False, highlight=False)


def main() -> None:
    """`ptq-diffusion [OVERRIDES]` runs experiments; `collect`, `options` and `doctor` are commands of their own.

    What the user can mend is said in one message; any other error keeps its traceback, and HYDRA_FULL_ERROR=1 shows
    that of every error.
    """
    words = sys.argv[1:]
    show_everything = full_errors_asked_for()
    try:
        with handed_on():
            command(words)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it was\n")
        sys.exit(130)
    except Exception as error:
        said = None if show_everything else refusal(error, words, CONF)
        if said is None:
            raise
        sys.exit(said)


def command(words: list[str]) -> None:
    """Do what the words of the command line ask for.

    Raises:
        ValueError: the words do not fit their command, or ask for a pickled configuration, or the first is no command.
    """
    if words[:1] == ["collect"]:
        collect_runs(words[1:])
    elif words[:1] == ["options"]:
        from ptq_diffusion.command.options import print_options

        print_options(words[1:], CONF)
    elif words[:1] == ["doctor"]:
        from ptq_diffusion.command.doctor import examine

        sys.exit(examine(words[1:]))
    elif any(word.startswith("--e") for word in words):
        raise ValueError("expected no --experimental-rerun, which reads a pickled file; give the overrides again")
    elif words[:1] == ["--version"]:
        sys.stdout.write(f"ptq-diffusion {__version__}\n")
    elif words and words[0].isalpha():
        raise ValueError(
            f"expected collect, options, doctor or OPTION=VALUE, got {words[0]!r}; ptq-diffusion --help lists all"
        )
    elif _amid_overrides("-m", words) or _amid_overrides("--multirun", words):
        raise ValueError("expected -m in front of all overrides of a sweep, got it among them; move it to the front")
    else:
        experiment()


def _amid_overrides(flag: str, words: list[str]) -> bool:
    """Whether there are overrides on both sides of it, which argparse cannot read."""
    if flag not in words:
        return False
    place = words.index(flag)
    return all(any("=" in word for word in side) for side in (words[:place], words[place + 1 :]))
