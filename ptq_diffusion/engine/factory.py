"""The one place where a configuration becomes objects."""

import inspect
import pydoc
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from diffusers import ModelMixin, SchedulerMixin
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch.optim import Optimizer

from ptq_diffusion.engine.plugins import owner, plugin_object, plugins_of

STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
"""Options are of the types that they are annotated with, and numbers are finite, in lists and maps too."""
OURS = "ptq_diffusion."
ALLOWED = (OURS, "diffusers.", "torch.optim.")
PLACE = re.compile(r"full_key: (\S+)\s*$")
"""The end of what Hydra says of a constructor that raised: the object's place in the configuration."""
ADVICE = "; "
"""The beginning of what to do in a message."""
OTHER_WEIGHTS = "Error(s) in loading state_dict"
"""The beginning of what torch says of weights of another network."""


def construct(node: DictConfig, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Build what `node._target_` names, with the node's other keys and `kwargs` as its arguments.

    Raises:
        ValueError: a target lies outside this package, diffusers, torch.optim and the packages that the configuration
            around the node lists as `plugins`, is of a plugin and derived from no class of ours, or one of ours or a
            plugin's has no such option or takes values of another type. What a constructor raises passes through.
    """
    parts, plugins = _parts(plain(node)), plugins_of(node)
    if "_target_" not in node:
        raise ValueError(
            f"expected a _target_ that names a class, got options without one: {', '.join(map(str, node))}"
        )
    allowed = [_allowed(str(part["_target_"]), plugins) for part in parts]
    for target, part in zip(allowed, parts, strict=True):
        if type(part.get("_partial_", False)) is not bool:
            raise ValueError(
                f"expected _partial_ of {target.__qualname__} to be true or false, got {part['_partial_']!r}"
            )
        if f"{target.__module__}.".startswith((OURS, *_homes(plugins))):
            _require_options(target, part, plugins)
    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        # The constructor's own error is clearer than Hydra's, which adds only the place in the configuration.
        cause, place = error.__cause__ or error, PLACE.search(str(error))
    if isinstance(cause, RuntimeError) and str(cause).startswith(OTHER_WEIGHTS):
        text = " ".join(str(cause).split())[:300]
        raise ValueError(
            f"expected options of {node._target_} that fit its weights, got others ({text}); change them or the file"
        ) from cause
    if type(cause) is ValueError and place and ADVICE not in str(cause):
        raise ValueError(f"{cause}{ADVICE}change options of {place[1]}") from None
    raise cause from None


def require_kind(node: DictConfig, kind: type, option: str, partial: bool = False) -> None:
    """Refuse a node from which `construct` would build something else than is wanted, before it builds anything.

    Args:
        node: names a class.
        kind: the class, or one that it is to be derived from.
        option: the node's name, for the message.
        partial: whether its class is wanted with some arguments, in place of an object.

    Raises:
        ValueError: the message says what is wanted.
    """
    part = plain(node)
    if not isinstance(part, dict) or "_target_" not in part:
        raise ValueError(f"expected {option} to name a class, got {part!r:.100}; choose one: {option}=NAME")
    _require_kind(part, kind, option, partial, plugins_of(node))


def names_kind(node: DictConfig, kind: type) -> bool:
    """Whether what `construct` builds from a node would be of a kind; nothing is built, and no option is looked at.

    Raises:
        ValueError: as `construct` does of a target that is not allowed.
    """
    if "_target_" not in node or node.get("_partial_", False):
        return False
    return issubclass(_built(_allowed(str(node._target_), plugins_of(node))), kind)


def plain(node: DictConfig | ListConfig) -> Any:  # noqa: ANN401
    """A resolved configuration as dicts, lists and scalars."""
    return OmegaConf.to_container(node, resolve=True)


def targets(node: object) -> list[str]:
    """Every `_target_` in a plain configuration, at any depth."""
    return [str(part["_target_"]) for part in _parts(node)]


def _allowed(name: str, plugins: Sequence[str]) -> Callable[..., Any]:
    """The class or function of this name, if allowed; judged by its defining module, not by one that imports it."""
    target: Any = None
    if name.startswith(ALLOWED):
        target = _located(name)
    elif owner(name, plugins):
        target = plugin_object(name)
    home = f"{getattr(target, '__module__', '')}."
    homes = (*ALLOWED, *_homes(plugins))
    if not callable(target) or not home.startswith(homes) or not _constructible(target, home):
        among = ", ".join(homes)
        if target is not None and owner(name, plugins):
            raise ValueError(
                f"expected a _target_ of a plugin that names a class derived from one of {OURS[:-1]}, got {name!r}; "
                "derive it from the contract that it fulfils"
            )
        hint = "" if name.startswith(homes) else "; a package of your own is to be named too, plugins=[my_package]"
        raise ValueError(f"expected a _target_ that names a class of {among}, got {name!r}{hint}")
    return target


def _built(target: Callable[..., Any]) -> type:
    """The class of what a target builds: itself, or the one whose `from_folder` it is."""
    built = target if isinstance(target, type) else getattr(target, "__self__", None)
    return built if isinstance(built, type) else NoneType


def _located(name: str) -> object:
    """The object of a library that a dotted name stands for, None where there is none."""
    try:
        return pydoc.locate(name) if all(name.split(".")) else None
    # A library runs any code when it is imported, diffusers some for every class.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"expected a _target_ that can be imported, got {name!r} ({text}); choose another") from error


def _homes(plugins: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{plugin}." for plugin in plugins)


def _constructible(target: object, home: str) -> bool:
    """Whether a configuration may construct the target; functions are refused, for they could run code from files.

    Allowed are our classes and their `from_folder`, networks, schedulers and optimizers of the libraries, and of
    plugins classes that derive from one of ours.
    """
    is_class, reads_folder = isinstance(target, type), getattr(target, "__name__", "") == "from_folder"
    if home.startswith(OURS):
        return is_class or reads_folder
    if home.startswith(ALLOWED):
        return isinstance(target, type) and issubclass(target, (ModelMixin, SchedulerMixin, Optimizer))
    built = target if is_class else getattr(target, "__self__", None)
    return isinstance(built, type) and (is_class or reads_folder) and _fulfils_ours(built)


def _fulfils_ours(kind: type) -> bool:
    return any(f"{base.__module__}.".startswith(OURS) for base in kind.__mro__)


def _require_kind(part: Mapping[str, Any], kind: type, option: str, partial: bool, plugins: Sequence[str]) -> None:
    target = _allowed(str(part["_target_"]), plugins)
    if not issubclass(_built(target), kind) or bool(part.get("_partial_", False)) is not partial:
        wanted = f"a {kind.__name__}" if not partial else f"a {kind.__name__} that takes more arguments (_partial_)"
        raise ValueError(
            f"expected {option} to be {wanted}, got {target.__qualname__}{' (_partial_)' * bool(part.get('_partial_'))}"
            "; choose another"
        )


def _parts(node: object) -> list[Mapping[str, Any]]:
    """Every mapping within that names a target, outer ones first."""
    if isinstance(node, dict):
        return [node] * ("_target_" in node) + [part for value in node.values() for part in _parts(value)]
    return [part for value in node for part in _parts(value)] if isinstance(node, list) else []


def _require_options(target: Callable[..., Any], part: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Refuse options that a target does not have, lacks or annotates with another type; nothing is converted."""
    name = target.__qualname__.removesuffix(".from_folder")
    if absent := sorted(getattr(target, "__abstractmethods__", ())):
        raise ValueError(f"expected {name} to define all that its contract asks for, it lacks {_list(absent)}; add it")
    options = {key: value for key, value in part.items() if key not in ("_target_", "_partial_")}
    parameters = _parameters(target)
    if unknown := sorted(options.keys() - parameters.keys()):
        raise ValueError(f"expected options of {name}, which has {_list(parameters)}, got {_list(unknown)}")
    required = {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
    if (missing := sorted(required - options.keys())) and not part.get("_partial_"):
        raise ValueError(
            f"expected all options of {name}, which has {_list(parameters)}, got none for {_list(missing)}"
        )
    hints = _hints(target)
    for key, value in options.items():
        if key not in hints:
            raise ValueError(f"expected {key} of {name} to be annotated with its type, it is not; annotate it")
        if _parts(value):
            _require_parts(value, hints[key], f"{key} of {name}", plugins)
            continue
        if getattr(hints[key], "_is_protocol", False):
            raise ValueError(f"expected {key} of {name} to name a class (_target_), got {value!r:.100}; give another")
        try:
            _adapter(target, key).validate_python((value,))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(step) for step in (key, *first["loc"][1:]))
            text = first["msg"].removeprefix("Input should be ")
            if first["type"] == "sequence_str" or text == "an instance of Sequence":
                text = "a list"
            raise ValueError(
                f"expected {place} of {name} to be {text}, got {first['input']!r:.100}; give another"
            ) from None


@cache
def _hints(target: Callable[..., Any]) -> Mapping[str, Any]:
    """The types that the options of a target are annotated with."""
    return get_type_hints(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)


@cache
def _adapter(target: Callable[..., Any], option: str) -> TypeAdapter[Any]:
    """The check of an option in a tuple of its own."""
    # Within a tuple, for pydantic applies no other configuration than its own to a dataclass at the top level.
    alone: Any = tuple.__class_getitem__(_hints(target)[option])
    return TypeAdapter(alone, config=STRICT)


@cache
def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The options of a target by name; what takes any number, as the constructor that torch gives a module, is none."""
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(target).parameters.items()
    return {name: parameter for name, parameter in parameters if parameter.kind not in any_number}


def _require_parts(value: object, hint: Any, option: str, plugins: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse parts of another kind than an option is annotated with: of a class, or of a mapping to objects of one."""
    kind = get_args(hint)[-1] if get_origin(hint) is Mapping else hint
    (kind,) = [part for part in get_args(kind) if part is not NoneType] if _is_optional(kind) else (kind,)
    kind = get_origin(kind) or kind
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return
    for part in value.values() if isinstance(value, dict) and "_target_" not in value else [value]:
        if not isinstance(part, Mapping) or "_target_" not in part:
            raise ValueError(f"expected {option} to be a {kind.__name__}, got {part!r:.100}; choose another")
        _require_kind(part, kind, option, False, plugins)


def _is_optional(hint: Any) -> bool:  # noqa: ANN401
    return isinstance(hint, UnionType) and len(get_args(hint)) == 2 and NoneType in get_args(hint)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
