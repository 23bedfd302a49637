"""Errors that a user can mend, as one message: what was expected, what came and what to do."""

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException
from safetensors import SafetensorError

from ptq_diffusion.command.option_words import quoted

FULL_ERRORS = "HYDRA_FULL_ERROR"
MENDABLE = (ValueError, OSError, FloatingPointError, ImportError, HydraException, OmegaConfBaseException)
HELP = "ptq-diffusion --help lists all groups, --cfg job all options"
SWEEP = "a sweep takes -m in front"
LISTED = 12
"""Names that a message lists whole; of more it names those alone that are alike."""
LAUNCHERS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""The extra that each of Hydra's other launchers comes with."""

TWICE, ONCE = ("heun", "kdpm2", "flow_heun", "flow_match_heun"), "sampler=dpm_solver with twice the steps"
"""Samplers whose steps evaluate the network twice, by the beginnings of their names, and what to take instead."""

FORMER = {"training.snr_gamma": "training.objective.gamma"}
"""Options of earlier versions whose names are like none of today's, and what they are called today."""


def full_errors_asked_for() -> bool:
    """Whether the environment asks for the traceback of every error."""
    return os.environ.get(FULL_ERRORS) == "1"


class PastHydra(BaseException):
    """Carries the error of a single run through Hydra, which prints an account of its own of every `Exception`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def handed_on() -> Iterator[None]:
    """Within this context Hydra hands errors on, in place of printing its own account of them and exiting."""
    before, failure = os.environ.get(FULL_ERRORS), None
    os.environ[FULL_ERRORS] = "1"
    try:
        yield
    except PastHydra as carrier:
        failure = carrier.error
    finally:
        del os.environ[FULL_ERRORS]
        if before is not None:
            os.environ[FULL_ERRORS] = before
    if failure is not None:
        raise failure


def refusal(error: Exception, overrides: Sequence[str], conf: Path, several: str = SWEEP) -> str | None:
    """The message for the user, or None of a programming error, which deserves its traceback.

    Args:
        error: what ended the command.
        overrides: the words of the command line.
        conf: the folder of the configurations, whose names are offered in place of an unknown one.
        several: the way to several values of an option.
    """
    message: str | None
    if isinstance(error, HydraException):
        message = _of_composition(error, overrides, conf, several)
    elif isinstance(error, OmegaConfBaseException):
        message = _of_value(error)
    elif isinstance(error, SafetensorError):
        message = _of_tensors(error)
    elif isinstance(error, OSError) and error.errno is not None:
        message = _of_system(error)
    elif isinstance(error, MENDABLE):
        message = str(error) if is_ours(error) else _of_library(error)
    elif _place(error).startswith("wandb."):
        message = f"{_of_library(error)}; logger=none does without Weights & Biases"
    elif _place(error).startswith(("hydra.", "omegaconf.")):
        message = f"expected OPTION=VALUE and GROUP=NAME, got words that Hydra cannot compose ({_line(error)}); {HELP}"
    else:
        message = _of_memory(error)
    return None if message is None else f"error: {message}"


def closest(name: str, known: Sequence[str], otherwise: str = HELP) -> str:
    """The known names that look most like this one, in words; a few names, none of them alike, are all listed.

    Args:
        name: that nothing has.
        known: names that there are.
        otherwise: where to find them, if none is alike and they are too many to list.
    """
    matches = get_close_matches(name, known, n=3, cutoff=0.6)
    if not matches:
        # A right last part at a wrong place, such as eta for sampler.eta.
        matches = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]][:3]
    if matches:
        return f"the closest {'is' if len(matches) == 1 else 'are'} {', '.join(matches)}"
    return f"there are {', '.join(sorted(known))}" if 0 < len(known) <= LISTED else otherwise


def _of_word(word: str, text: str) -> str:
    """The message for a word that Hydra cannot read, for which it has a text."""
    if "=" not in word:
        return (
            f"expected OPTION=VALUE, got {word!r}, before which stands no option; a list is OPTION=[A,B], and "
            "--config-path takes one folder"
        )
    return (
        f"expected OPTION=VALUE, got {word!r} ({text}); put a value that holds more than letters, digits and ./:- in "
        f"quotes, with them: {quoted(word)}"
    )


def _of_composition(error: HydraException, overrides: Sequence[str], conf: Path, several: str) -> str:
    """The message for one of Hydra's errors of a command line, in our words where ours say more."""
    text = _line(error)
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = sorted(error.options)
        if extra := LAUNCHERS.get(name if group == "hydra/launcher" else ""):
            return f"expected the launcher {name}, which is not installed; pip install '.[{extra}]' in the checkout"
        if group == "sampler" and name.startswith(TWICE):
            return f"expected a sampler that asks the network once a step, got {name}, which asks twice; set {ONCE}"
        return _of_choice(group, name, options)
    if isinstance(error, OverrideParseException):
        return _of_word(error.override, text.partition(" See https")[0])
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)' 1\.", text):
        key, value = ambiguous.groups()
        return (
            f"expected one value of {key}, got {value}; a list is {key}=[{value}], {several}, a text is "
            f"{quoted(f'{key}={value}')}"
        )
    if swept := re.match(r"Sweep parameters '(.+)' requires --multirun", text):
        return f"expected one value, got those of {swept[1]}; {several}"
    if interpolation := re.match(r"Error resolving interpolation '(.*?)', possible interpolation keys", text):
        # Hydra lists every group.
        return f"expected a group in {interpolation[1]}, whose choice stands there, got another name; {HELP}"
    if merged := re.match(r"Error merging override \+*([^=]+)=(.*)$", text):
        key, value = merged.groups()
        return (
            f"expected {key} to stay what it is, a list or options by name, got {value}; write {key}=[VALUE,...] or "
            f"{key}.OPTION=VALUE"
        )
    if unknown := re.match(r"Could not override '([^']+)'\.", text):
        key = unknown.group(1)
        return f"expected an option or a group of this experiment, got {key!r}; {_known_instead(key, overrides, conf)}"
    if present := re.match(r"Could not append to config\. An item is already at '([^']+)'", text):
        key = present.group(1)
        return f"expected + in front of a new option only, {key} is there already; write {key}=VALUE"
    return text.partition(" Config search path:")[0]


def _known_instead(key: str, overrides: Sequence[str], conf: Path) -> str:
    """The closest keys that the rest of the command line would have accepted in place of an unknown one."""
    rest = [word for word in overrides if not word.startswith("-") and word.partition("=")[0].lstrip("+~") != key]
    swept = (name for name, _, value in (word.partition("=") for word in rest) if "," in value)
    if group := next((name for name in swept if key.startswith(f"{name}.")), None):
        return f"{group} is swept, and so is an option that its choices alone have: write {key}=choice(VALUE)"
    composition = _composed(rest, conf) or _composed([], conf)
    if composition is None:
        return HELP
    groups = [group for group in composition.hydra.runtime.choices if not group.startswith("hydra/")]
    options = {key: value for key, value in _unresolved(composition).items() if key != "hydra"}
    if key in groups:
        return f"it is a group, one of whose files is chosen by its name: {key}=NAME"
    if places := [f"{group}=NAME" for group in groups if group.startswith(f"{key}@")]:
        return f"the group has {len(places)} places: {', '.join(places)}"
    if key in FORMER and FORMER[key] in option_names(options):
        return f"it is {FORMER[key]} today"
    parent, _, _ = key.rpartition(".")
    names = option_names(options)
    if siblings := [name for name in names if parent and name.rpartition(".")[0] == parent]:
        return closest(key, siblings)
    return closest(key, list(dict.fromkeys([*groups, *names])))


def option_names(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all options of a configuration, without those that name a class."""
    names = []
    for key, value in options.items():
        if not key.startswith("_"):
            names += [f"{prefix}{key}", *(option_names(value, f"{prefix}{key}.") if isinstance(value, dict) else [])]
    return names


def _composed(overrides: Sequence[str], conf: Path) -> DictConfig | None:
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError):
        return None


def _unresolved(cfg: DictConfig) -> dict[str, Any]:
    options = OmegaConf.to_container(cfg)
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def _of_choice(group: str, name: str, options: Sequence[str]) -> str:
    """The message for an unknown choice of a group; of many choices, of which one is alike, that one alone is named."""
    match = next(iter(get_close_matches(name, options, n=1)), None)
    if match is None:
        return f"expected one of {', '.join(options)} as {group}, got {name!r}"
    if len(options) <= LISTED:
        return f"expected one of {', '.join(options)} as {group}, got {name!r}; the closest is {match}"
    return (
        f"expected one of {len(options)} names as {group}, got {name!r}; the closest is {match}, "
        f"`ptq-diffusion options {group}` describes all"
    )


def _of_value(error: OmegaConfBaseException) -> str:
    """The message for one of OmegaConf's errors of an option."""
    key, text = error.full_key, _line(error).partition(" full_key:")[0]
    if isinstance(error, MissingMandatoryValue):
        return f"expected a value of {key}, which has none of its own; give one: {key}=VALUE"
    if isinstance(error, InterpolationKeyError):
        return f"expected every ${{...}} to name an option, in {key} one does not: {text}; {HELP}"
    return f"expected a configuration with all its options, {text} (at {key}); leave out what removes or replaces it"


def _of_tensors(error: SafetensorError) -> str:
    """The message for a file that is no safetensors file; a full disk raises the same error."""
    if re.search(r"os error (28|122)\b", str(error)):
        return _full(str(error))
    return (
        f"expected a whole safetensors file, got one that cannot be read or written ({_line(error)}); make it again; "
        f"{FULL_ERRORS}=1 shows where"
    )


def _of_system(error: OSError) -> str:
    """The message for a refusal of the operating system."""
    what = f"{error.strerror}" + (f": {error.filename!s}" if error.filename else "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(what)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"expected to be allowed to read and write there, got {what!r}; choose another folder: outputs=FOLDER"
    return f"expected files and folders that can be read and written, got {what!r}; check the path"


def _full(what: str) -> str:
    return (
        f"expected room on the disk, got {what!r}; free some or choose another disk with outputs=FOLDER; "
        "what was complete is kept, and the same command goes on from it"
    )


def _of_library(error: Exception) -> str:
    if choice := re.match(r"Config group override must be a string or a list\. Got (\w+)", str(error)):
        got = "null" if choice[1] == "NoneType" else f"a value of type {choice[1]}"
        return f"expected GROUP=NAME with the name of a file of that group, got {got}; {HELP}"
    kind = f"{type(error).__name__} from {_place(error).partition('.')[0]}"
    remedy = "; ptq-diffusion doctor examines the installation" if isinstance(error, ImportError) else ""
    return f"{_line(error)} ({kind}){remedy}; {FULL_ERRORS}=1 shows where"


def _of_memory(error: Exception) -> str | None:
    import torch

    # torch says of the CPU's memory what it was asked for, in an error of no class of its own.
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
        return None
    return f"expected room in memory, got {_line(error) or 'more asked for than is left'}; lower micro_batch"


def is_ours(error: Exception) -> bool:
    """Whether this package raised an error, whose message then says what to do."""
    return _place(error).startswith("ptq_diffusion.")


def _place(error: Exception) -> str:
    """The module that raised an error."""
    traceback, place = error.__traceback__, ""
    while traceback is not None:
        place = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return place


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
