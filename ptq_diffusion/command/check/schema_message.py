"""Errors of the schema of an experiment in words: what was expected, what came and what to do."""

import re
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.command.refusal import FORMER, closest

NO_PART = ("dict_type", "mapping_type", "model_type")
"""pydantic's types of errors of a value where a part with options of its own is expected."""


def schema_message(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    """One of pydantic's errors of a schema in the words of this project."""
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] == "missing":
        return f"expected the option {key}, got none; leave out what removes or replaces it"
    if detail["type"] == "extra_forbidden":
        remedy = f"it is {FORMER[key]} today" if key in FORMER else closest(key, declared_names(schema))
        return f"expected options of this experiment, got {key!r}, which nothing reads; {remedy}"
    if detail["type"] in NO_PART:
        remedy = _part_instead(key, schema)
        return f"expected {key} to be a part with options of its own, got {detail['input']!r}; {remedy}"
    if detail["type"] == "string_pattern_mismatch":
        return f"expected {key} to be the name of a folder below outputs/runs, got {detail['input']!r}"
    expectation = re.sub("^(Input|String|Value|List|Tuple) should", "to", detail["msg"]).replace(
        " after validation", ""
    )
    return f"expected {key} {expectation}, got {detail['input']!r}; give another value: {key}=VALUE"


def _part_instead(key: str, schema: type[BaseModel]) -> str:
    """The words that set a part of the configuration, in place of a value given to all of it."""
    if (CONF / key).is_dir():
        return f"choose one of its files when the configuration is composed, in Python pd.compose('{key}=NAME')"
    known = [name for name in declared_names(schema) if name.rpartition(".")[0] == key]
    return f"set {' or '.join(known)}" if known else f"set {key}.OPTION=VALUE"


def declared_names(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all options that a schema declares, those of parts behind them."""
    parts = [(name, _part_of(field.annotation)) for name, field in schema.model_fields.items()]
    inner = [name for key, kind in parts if kind for name in declared_names(kind, f"{prefix}{key}.")]
    return [*(f"{prefix}{name}" for name, _ in parts), *inner]


def _part_of(annotation: object) -> type[BaseModel] | None:
    """The options of a field that is a part, which may be null; None of a value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
