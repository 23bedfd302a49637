"""The words of a command beside runs: options of its own, and overrides that compose an experiment as a run's do."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.command.option_words import quoted_for_hydra

SEARCH_PATH = "hydra.searchpath"
"""The option that --config-dir is a short word for."""


def composed(parser: ArgumentParser, words: Sequence[str]) -> tuple[Namespace, DictConfig]:
    """The options of a command and the experiment of its overrides, checked and with its plugins imported.

    Args:
        parser: of the options; --config-dir is added, as runs have it.
        words: of the command line.

    Raises:
        ValueError: there is no such option, or the overrides do not compose.
        FileNotFoundError: --config-dir is no folder.
    """
    parser.add_argument("--config-dir", "-cd", type=Path, metavar="DIR", help="a folder of configurations beside ours")
    arguments, overrides = parser.parse_known_args(words)
    options = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    if odd := [word for word in overrides if word.startswith("-")]:
        raise ValueError(
            f"expected OPTION=VALUE or one of {', '.join(options)}, got {odd[0]}; {parser.prog} --help says more"
        )
    # Imports that take long, which other commands do without.
    from ptq_diffusion.command.check.schema import require_schema
    from ptq_diffusion.command.python import compose
    from ptq_diffusion.engine.plugins import PLUGINS, require_plugins
    from ptq_diffusion.engine.runtime import quiet_libraries

    cfg = compose(*overrides, *_searched(arguments.config_dir, overrides))
    require_schema(cfg)
    require_plugins(cfg.get(PLUGINS, ()))
    quiet_libraries()
    return arguments, cfg


def _searched(folder: Path | None, overrides: Sequence[str]) -> list[str]:
    """The override that lets Hydra look into a folder too, if there is one."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of configurations as --config-dir, there is none at {folder}")
    if any(word.partition("=")[0] == SEARCH_PATH for word in overrides):
        raise ValueError(f"expected --config-dir or {SEARCH_PATH}, got both; give all folders in {SEARCH_PATH}=[...]")
    return [f"{SEARCH_PATH}=[{quoted_for_hydra(str(folder.absolute()))}]"]
