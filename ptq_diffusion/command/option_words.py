"""Short words, safe in file names, for options that differ from a choice's own; and texts in quotes."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

SPEAKING = ("model", "sampler", "bitwidth", "correction")
"""Groups whose files have names that need no word beside them."""
UNNAMED = (
    "name",
    "labels",
    "goal",
    "outputs",
    "force",
    "runtime",
    "plugins",
    "logger",
    "metric",
    "experiment",
    "hydra",
)
"""Options and groups that change no image, and those that a name holds already."""
SHORT = {"sampler.steps": "steps", "model.path": ""}
"""Words for options whose last part other options have too."""
LONGEST = 32
"""Letters of a value."""
LARGEST = 1e9
"""Floats from here on are told by their power of ten."""
REMOVED = object()
"""The value of an option that is not there."""


def differences(usual: Mapping[str, Any], options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of options that differ from the usual ones, in the order of the options."""
    for key in [*options, *(key for key in usual if key not in options)]:
        before, after, name = usual.get(key, REMOVED), options.get(key, REMOVED), f"{prefix}{key}"
        if name in UNNAMED or before == after:
            continue
        if isinstance(after, Mapping):
            yield from differences(before if isinstance(before, Mapping) else {}, after, f"{name}.")
        else:
            yield name, after


def words_of_options(changed: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """A word for every changed option, its name and value: steps4, eta0.5, seeds3_4, noise_images64, no_tac."""
    names = [name.rpartition(".")[2] for name in _names(options)]
    return [_word(key, value, names.count(key.rpartition(".")[2]) > 1) for key, value in changed.items()]


def quoted(override: str | None) -> str:
    """The word to type for an override whose value is a text, with quotes for Hydra inside quotes for the shell.

    A ~ in front is written in full, for no shell sees it inside quotes.
    """
    key, _, value = (override or "OPTION=VALUE").partition("=")
    text = os.path.expanduser(value.strip("'\"")).replace("'", r"\'")
    word = f"{key}='{text}'"
    return shlex.quote(word) if re.search(r'["$`!\\]', word) else f'"{word}"'


def quoted_for_hydra(text: str) -> str:
    """A text as Hydra's grammar reads it whole, whatever its characters."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def word_of_choice(key: str, choice: str) -> str:
    """The word for a file of a group: its name, with its place where the group has several or says no noun.

    Args:
        key: GROUP or GROUP@PACKAGE.
        choice: the file's name; empty words stand for groups that change no image.
    """
    group, _, package = key.partition("@")
    if group in UNNAMED:
        return ""
    if group in SPEAKING and not package:
        return _safe(choice)
    parts = (package or group).split(".")
    return _safe("_".join(dict.fromkeys([*(parts[-2:] if parts[-1] == group else parts[-1:]), choice])))


def _word(key: str, value: object, ambiguous: bool) -> str:
    """The word of an option; `ambiguous` where another option's name has the same last part."""
    parts = key.split(".")
    if value is REMOVED:
        return _safe(f"no_{parts[-1]}")
    name = SHORT[key] if key in SHORT else "_".join(parts[-2:] if ambiguous else parts[-1:]).removesuffix("_path")
    text = _text(parts[-1], value)
    return _safe(f"{name}{text}" if text[0].isdigit() and not name[-1:].isdigit() else f"{name}_{text}".strip("_"))


def _text(name: str, value: object) -> str:
    """A value in a few letters; of a long one a hash."""
    if isinstance(value, list) and len(value) > 2 and _ascends(value):
        return f"{value[0]}to{value[-1]}"
    if isinstance(value, list) and all(isinstance(item, int | float | str) for item in value):
        text = "_".join(_text(name, item) for item in value)
    elif isinstance(value, str):
        text = value.rstrip("/").rpartition("/")[2] if name == "path" else value
    else:
        whole = isinstance(value, float) and value.is_integer() and abs(value) < LARGEST
        text = json.dumps(int(value) if whole else value, default=str).replace("-", "minus")  # type: ignore[call-overload]
    text = _safe(text)
    short = 0 < len(text) <= LONGEST and not isinstance(value, dict)
    return text if short else hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:8]


def _ascends(values: list[Any]) -> bool:
    """Whether these are whole numbers, each by 1 above the one before."""
    return all(type(value) is int for value in values) and values == list(range(values[0], values[0] + len(values)))


def _safe(text: str) -> str:
    """Letters that every file system, shell and Hydra's grammar take as they are; - stands between words only."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("._")


def _names(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
