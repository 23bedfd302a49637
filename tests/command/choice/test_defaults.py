"""A class has in Python the defaults that its YAML states: one value, told in both places, compared here.

A constructor without defaults would make every notebook write what YAML knows. A YAML without values could be neither
read nor overridden by name, and a run's signature would not have them. So both state them. The rule: a parameter has a
default where all files that name its class agree on a plain value, or, where they differ, that of the file named as the
class. It has none where they differ otherwise, where the value is a reference or another object, and where a
parameter behind it has none, as Python asks. What some of the files leave out has the default that they mean.
"""

import inspect
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_object

CONF = Path(__file__).parents[3] / "conf"
GROUPS = (
    "bitwidth",
    "correction",
    "data",
    "feature",
    "logger",
    "metric",
    "model",
    "quantizer",
    "range_search",
    "reference",
    "rounding",
)
NONE = inspect.Parameter.empty


def values(node, name):
    """(target, file's name, options) of every class of ours below a node."""
    if isinstance(node, dict):
        if str(node.get("_target_", "")).startswith("ptq_diffusion."):
            yield node["_target_"], name, {key: value for key, value in node.items() if not key.startswith("_")}
        for value in node.values():
            yield from values(value, name)


def stated():
    """From targets to the options that each file gives them."""
    classes = defaultdict(dict)
    for group in sorted(GROUPS):
        for path in sorted((CONF / group).glob("*.yaml")):
            for target, name, options in values(yaml.safe_load(path.read_text()), path.stem):
                classes[target][name] = options
    return dict(classes)


def is_plain(value):
    if isinstance(value, dict):
        return "_target_" not in value and all(is_plain(part) for part in value.values())
    if isinstance(value, list):
        return all(is_plain(part) for part in value)
    return not (isinstance(value, str) and ("${" in value or value == "???"))


def agreed(target, files, name):
    """The value that files give a parameter, or NONE."""
    last = target.rpartition(".")[2].lower()
    namesake = [options for stem, options in files.items() if stem.replace("_", "") == last.removesuffix("tracker")]
    rows = [options[name] for options in files.values() if name in options]
    if not rows or not all(is_plain(value) for value in rows):
        return NONE
    if all(value == rows[0] for value in rows):
        return rows[0]
    return namesake[0].get(name, NONE) if namesake else NONE


def comparable(value):
    """A default in the form that YAML has it in."""
    if isinstance(value, tuple | list):
        return [comparable(part) for part in value]
    return {key: comparable(part) for key, part in value.items()} if hasattr(value, "items") else value


CLASSES = stated()


@pytest.mark.parametrize("target", CLASSES)
def test_defaults_in_python_are_those_of_the_file(target):
    files, behind = CLASSES[target], True
    for name, parameter in reversed(inspect.signature(get_object(target)).parameters.items()):
        expected = agreed(target, files, name) if behind else NONE
        if all(name in options for options in files.values()):
            assert comparable(parameter.default) == expected, f"{target}: {name} of {', '.join(files)}"
        behind = behind and parameter.default is not NONE


def test_the_rule_finds_classes_of_every_kind():
    assert len(CLASSES) > 40
    assert agreed("x.A", {"a": {"p": 1}, "b": {"p": 2}}, "p") == 1
    assert agreed("x.A", {"c": {"p": 1}, "b": {"p": 2}}, "p") is NONE
    assert agreed("x.A", {"a": {"p": "${q}"}}, "p") is agreed("x.A", {"a": {"p": "???"}}, "p") is NONE
    assert agreed("x.A", {"c": {"p": [1]}, "b": {"p": [1]}}, "p") == [1]
