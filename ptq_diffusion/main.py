"""The command line: compose a configuration and make its goal, collect the reports of many, or examine the machine."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from ptq_diffusion.stage.refusal import full_errors_asked_for, handed_on, refusal

HERE = Path(__file__).parent
CONF = next(folder for folder in (HERE / "conf", HERE.parent / "conf") if folder.is_dir())


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def experiment(cfg: DictConfig) -> None:
    """Make the goal of one composed experiment."""
    from ptq_diffusion.stage.experiment import run

    run(cfg)


def main() -> None:
    """`ptq-diffusion [OVERRIDES]` runs experiments; `collect FOLDER` prints a table of reports; `doctor` examines.

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
        ValueError: the words do not fit `collect` or `doctor`, or ask for a pickled configuration.
    """
    if words[:1] == ["collect"]:
        from rich.console import Console

        from ptq_diffusion.stage.collect import collect

        if len(words) != 2:
            raise ValueError(f"expected one folder, got {len(words) - 1}: ptq-diffusion collect FOLDER")
        Console(soft_wrap=True).print(collect(Path(words[1])), markup=False, highlight=False)
    elif words[:1] == ["doctor"]:
        from ptq_diffusion.stage.doctor import examine

        sys.exit(examine(words[1:]))
    elif any(word.startswith("--e") for word in words):
        raise ValueError("expected no --experimental-rerun, which reads a pickled file; give the overrides again")
    else:
        experiment()
