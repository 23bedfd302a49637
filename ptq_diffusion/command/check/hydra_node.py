"""The node `hydra` of a configuration: what in it would run, import or write something, and is refused."""

import re
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.command.sweep import ListFailures

TARGETS = {
    "launcher._target_": (
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    ),
    "sweeper._target_": ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper",),
    "callbacks.failures._target_": (f"{ListFailures.__module__}.{ListFailures.__qualname__}",),
}
"""The classes that may be built, by the one place of each."""
BUILT = ("launcher.", "sweeper.", "callbacks.")
"""Nodes that Hydra constructs objects from, nested ones included."""
KNOWN_INTERPOLATIONS = {
    "launcher.name": "${hydra.job.name}",
    "launcher.submitit_folder": "${hydra.sweep.dir}/.submitit/%j",
}
"""The interpolations that objects of Hydra are built with; another could bring in a list or lines of a batch script."""
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
HANDLER = "logging.StreamHandler"
OWN_INTERPOLATION = re.compile(r"\$\{hydra[.:][\w.]+\}")
"""An interpolation to another option of Hydra, which is examined in its own place."""
ONE_WORD = re.compile(r"[\w.,:/*%+-]*")
"""A text that is one word for every shell and batch script."""
NOTHING = re.compile(r"(?!)")
FOLDER = re.compile(r"\$\{outputs\}(/(?!\.\.(/|$))([\w.-]|\$\{now:[\w%.-]+\})+)+")
REACHES_OUT = {
    "run.dir": FOLDER,
    "sweep.dir": FOLDER,
    "sweep.subdir": re.compile(r"\."),
    "output_subdir": re.compile(r"None"),
    "job.name": re.compile(r"[\w.-]+"),
    "job.chdir": re.compile(r"None|False"),
    "job.env_set.OMP_NUM_THREADS": re.compile(r"\d+"),
    "job.env_set.": NOTHING,
    "job.env_copy.": NOTHING,
    "launcher.submitit_folder": re.compile(r"\$\{hydra\.sweep\.dir\}/\.submitit/%j"),
    "launcher.temp_folder": re.compile(r"None"),
    "launcher.setup.": NOTHING,
    "launcher.additional_parameters.": NOTHING,
}
"""Options that reach out of a run, and with a dot at the end those below one: the values that a configuration may give
them. A word of the command line may give any other, for its user sees it."""


def require_harmless(node: DictConfig) -> None:
    """Refuse a node `hydra` from which Hydra would build, call or import what is not its own or this project's.

    Args:
        node: as composed, nothing of it resolved yet: what an interpolation gives may change before it is used.

    Raises:
        ValueError: it names a class other than a launcher or sweeper of Hydra, joblib or submitit, or this project's
            callback; a handler of logging that writes files, or a factory; or an interpolation where a class is built.
    """
    for key, value in _leaves(node):
        _require_known_class(key, value)
        _require_literal(key, value)
        if key.startswith("hydra_logging."):
            _require_stream(key, value)


def require_shown(node: DictConfig, words: Sequence[str]) -> None:
    """Refuse a node `hydra` whose folders, environment, log files or launcher's commands the command line hides.

    Args:
        node: as composed.
        words: the overrides of the command line.

    Raises:
        ValueError: a configuration, rather than the command line, sets one of them.
    """
    leaves, typed = _leaves(node), [_key(word) for word in words]
    count = sum(key.startswith(("overrides.hydra.", "overrides.task.")) for key, _ in leaves)
    if count != len(words):
        raise _refusal("overrides", "left to Hydra, which writes the command line there", f"{count - len(words)} more")
    copied = {value for key, value in leaves if key.startswith("job.env_copy.")}
    for key, value in leaves:
        if key.startswith("job_logging."):
            _require_stream(key, value)
        if key.removeprefix("job.env_set.") not in copied:
            _require_own_value(key, value, typed)


def _require_known_class(key: str, value: object) -> None:
    parts = key.split(".")
    if "_target_" in parts and value not in TARGETS.get(key, ()):
        known = " or ".join(TARGETS[key]) if key in TARGETS else "no class, for a configuration runs nothing"
        raise _refusal(key, known, value)
    if key.startswith(BUILT) and parts[-1].startswith("_") and key not in TARGETS:
        raise _refusal(key, "no such option", value)
    if key.startswith("callbacks.") and key not in TARGETS:
        raise _refusal(key, "no option of a callback", value)
    if re.match(r"sweeper\.params\.\W*(hydra|plugins)\b", key):
        raise _refusal(key, "an option of the experiment", value)


def _require_literal(key: str, value: object) -> None:
    """Refuse an interpolation that may bring in what is not examined, as a whole value does, and any in logging."""
    if not isinstance(value, str) or "${" not in value or key.startswith("overrides."):
        return
    if key.startswith(BUILT) and KNOWN_INTERPOLATIONS.get(key) == value:
        return
    whole = value.strip().startswith("${") and "${" in OWN_INTERPOLATION.sub("", value)
    if (whole and key not in REACHES_OUT) or f"{key}.".startswith(("hydra_logging.", *BUILT)):
        raise _refusal(key, "written out, without an interpolation", value)


def _require_stream(key: str, value: object) -> None:
    """Refuse what `logging.config` would call, import or write: it resolves `ext://` and `cfg://` in every text."""
    parts = key.split(".")[1:]
    if isinstance(value, str) and "${" in value:
        raise _refusal(key, "written out, without an interpolation", value)
    if "()" in parts or "" in parts:
        raise _refusal(key, "no factory", value)
    if "class" in parts and value != HANDLER:
        raise _refusal(key, f"{HANDLER}, for every run writes a log.txt", value)
    if isinstance(value, str) and "://" in value and value not in STREAMS:
        raise _refusal(key, " or ".join(STREAMS), value)


def _require_own_value(key: str, value: object, typed: Sequence[str]) -> None:
    rule = next((name for name in REACHES_OUT if key == name or (name[-1] == "." and key.startswith(name))), None)
    if any(f"hydra.{key}.".startswith(f"{word}.") for word in typed):
        return
    if rule is None and key.startswith("launcher.") and isinstance(value, str):
        if not ONE_WORD.fullmatch(OWN_INTERPOLATION.sub("", value)):
            raise _refusal(key, "one word", value)
    elif rule is not None and not REACHES_OUT[rule].fullmatch(str(value)):
        raise ValueError(
            f"expected hydra.{rule.rstrip('.')} as this project sets it, got hydra.{key}={value!r} from a "
            f"configuration; remove it, or write it on the command line if you mean it: hydra.{key}=VALUE"
        )


def _leaves(node: DictConfig) -> list[tuple[str, object]]:
    # Pairs: a key that itself holds dots may have the name of another.
    return list(_walk(OmegaConf.to_container(node, resolve=False), ""))


def _walk(node: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Every scalar by its dotted key; a list's items have their numbers, an empty container is left out."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        yield prefix.removesuffix("."), node
        return
    for key, value in items:
        yield from _walk(value, f"{prefix}{key}.")


def _key(word: str) -> str:
    """The option that an override sets."""
    return word.partition("=")[0].lstrip("+~").partition("@")[0]


def _refusal(key: str, expected: str, value: object) -> ValueError:
    return ValueError(f"expected hydra.{key} to be {expected}, got {value!r}; remove it from the configuration")
