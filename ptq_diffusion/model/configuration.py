"""Configurations of networks: whether a config.json fits the diffusers class that it names."""

import math
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from diffusers import ModelMixin

QUANTIZED = "quantization_config"
"""The key that a network has which was quantized before it was saved."""


def require_configuration(
    config: Mapping[str, Any], network_class: type[ModelMixin], path: Path, beside: Mapping[str, type] | None = None
) -> None:
    """Refuse a configuration that diffusers would take otherwise than it is meant: by a warning, a guess or a cast.

    Args:
        config: the contents of a config.json.
        network_class: the class that it names.
        path: the file, for messages.
        beside: options that the class does not have and that are heeded, with their types.

    Raises:
        ValueError: the network is quantized already, an option is unknown, or a value is of a wrong type.
    """
    if config.get(QUANTIZED) is not None:
        raise ValueError(
            f"expected a float network, got one that is already quantized by {_method(config[QUANTIZED])} "
            f"({QUANTIZED} in {path}); give the float model that it was made from"
        )
    options = set(beside or {}) | {
        name
        for name, parameter in signature(network_class.__init__).parameters.items()
        if parameter.kind is not Parameter.VAR_KEYWORD
    }
    if unknown := [name for name in config if name not in options and name != QUANTIZED and not name.startswith("_")]:
        raise ValueError(
            f"expected options of {network_class.__name__} in {path}, got {', '.join(unknown[:5])}, which this version "
            f"of diffusers does not know (the file is of {config.get('_diffusers_version', 'an unknown one')}); "
            "upgrade diffusers, or remove what the network does not need"
        )
    for name, kind in (get_type_hints(network_class.__init__) | dict(beside or {})).items():
        if name in config and not fits(config[name], kind):
            raise ValueError(
                f"expected {name} of type {getattr(kind, '__name__', kind)} in {path}, got {_shown(config[name])}; "
                "mend it there"
            )


def fits(value: object, kind: Any) -> bool:  # noqa: ANN401
    """Whether a value of a json file is of an annotated type; a bool is no number, and a list may be a tuple."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            return False
        # diffusers writes tuple[int] for tuple[int, ...].
        if len(parts) > 1 and parts[-1] is not Ellipsis and len(value) != len(parts):
            return False
        # Of tuples of tuples, such as the depth of each block of each level, one value may stand for a whole tuple.
        kinds = (parts[0], *get_args(parts[0])[:1]) if get_origin(parts[0]) in (tuple, list) else parts[:1]
        return all(any(fits(item, each) for each in kinds) for item in value)
    if kind in (int, float):
        numbers = int if kind is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool) and math.isfinite(value)
    # Other annotations are not judged: diffusers itself has to.
    return isinstance(value, kind) if kind in (bool, str, NoneType) else True


def _method(quantization: object) -> str:
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return method if isinstance(method, str) else "a method that it does not name"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
