"""`ptq-diffusion [-m] [OVERRIDES]`: experiments that Hydra composes from the words of the command line."""

import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from ptq_diffusion.command.check.composition import guarded
from ptq_diffusion.command.composing import SEARCH_PATH
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.refusal import PastHydra
from ptq_diffusion.command.sweep import require_multirun

AS_OURS = (
    "hydra/job_logging=stdout",
    "hydra.job.name=ptq-diffusion",
    "hydra.run.dir='${outputs}/hydra'",
    "hydra.output_subdir=null",
    "hydra.sweep.dir='${outputs}/hydra/${now:%Y-%m-%d_%H-%M-%S.%f}'",
    "hydra.sweep.subdir=.",
)
"""Hydra's own settings as the package's main file has them, for another, such as that of an earlier run."""


def run_experiments(words: Sequence[str]) -> None:
    """Run what the overrides compose; Hydra reads them from the command line itself.

    Raises:
        ValueError: the words ask for a pickled configuration, the first is no command, -m stands among overrides, or a
            pattern fits no name.
    """
    if any(word.startswith("--e") for word in words):
        raise ValueError("expected no --experimental-rerun, which reads a pickled file; give the overrides again")
    if words and words[0].isalpha():
        raise ValueError(
            f"expected collect, convert, layers, options, plan, store, doctor or OPTION=VALUE, got {words[0]!r}; "
            "ptq-diffusion --help lists all"
        )
    if _amid_overrides("-m", words) or _amid_overrides("--multirun", words):
        raise ValueError("expected -m in front of all overrides of a sweep, got it among them; move it to the front")
    _require_matches(words)
    if any(word.partition("=")[0] in ("--config-path", "-cp") for word in words):
        sys.argv += [word for word in AS_OURS if word.partition("=")[0] not in {one.partition("=")[0] for one in words}]
    with guarded():
        experiment()


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def experiment(cfg: DictConfig) -> None:
    """Make the goal of one composed experiment."""
    # Import torch, which the processes of a sweep must not do before Hydra has set their threads.
    from ptq_diffusion.command.experiment import run
    from ptq_diffusion.command.failure import recorded

    job = HydraConfig.get()
    try:
        require_multirun(job)
        with recorded(cfg, job):
            run(cfg)
    except Exception as error:
        if job.mode == RunMode.MULTIRUN:
            raise
        raise PastHydra(error) from error


def _require_matches(words: Sequence[str]) -> None:
    """Refuse a sweep over names of a group none of which fits its pattern: Hydra would sweep over nothing."""
    parsed = [override for word in words if (override := _parsed(word)) is not None]
    folders = _searched(words, parsed)
    for override in parsed:
        if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
            group = override.get_key_element().lstrip("+~").partition("@")[0]
            pattern = override.value()
            names = sorted({path.stem for folder in folders for path in folder.glob(f"{group}/*.yaml")})
            if not (isinstance(pattern, Glob) and pattern.filter(names)):
                raise ValueError(
                    f"expected a pattern of names of a group, got {override.input_line}, which none fits; there are "
                    f"{', '.join(names) or f'none of {group}, whose values are listed with commas'}"
                )


def _parsed(word: str) -> Override | None:
    """The override of a word; None of a flag, or of what Hydra says more about."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _searched(words: Sequence[str], parsed: Sequence[Override]) -> list[Path]:
    """The folders of configurations that the words name, in any of Hydra's spellings, and ours."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config-dir", "-cd", dest="folders", action="append", default=[])
    parser.add_argument("--config-path", "-cp", dest="folders", action="append")
    try:
        named: list[object] = parser.parse_known_args(words)[0].folders
    except ArgumentError:  # Hydra says more about a flag without a value.
        return [CONF]
    for override in parsed:
        if override.key_or_group == SEARCH_PATH and isinstance(places := override.value(), list):
            named = [*named, *places]
    return [CONF, *(Path(str(place).removeprefix("file://")) for place in named)]


def _amid_overrides(flag: str, words: Sequence[str]) -> bool:
    """Whether there are overrides on both sides of the flag, which argparse cannot read."""
    if flag not in words:
        return False
    place = words.index(flag)
    return all(any("=" in word for word in side) for side in (words[:place], words[place + 1 :]))
