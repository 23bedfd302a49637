"""Selects the part of a configuration that a stage may read."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.engine.factory import plain, targets
from ptq_diffusion.engine.plugins import PLUGINS, owner, plugins_of


def select(cfg: DictConfig, keys: Iterable[str], without: Iterable[str] = ()) -> DictConfig:
    """A configuration that holds only the given dotted keys, interpolations resolved, and `plugins` that they name.

    Args:
        cfg: the whole configuration.
        keys: of groups or options.
        without: dotted keys of options within those groups that are left out.

    Raises:
        ValueError: a key is missing from the configuration.
    """
    return OmegaConf.create(selected(cfg, keys, without))


def selected(cfg: DictConfig, keys: Iterable[str], without: Iterable[str] = ()) -> dict[str, Any]:
    """The part of a configuration that `select` returns, as dicts, lists and scalars."""
    selection: dict[str, Any] = {}
    for key in keys:
        value = OmegaConf.select(cfg, key, throw_on_missing=True, default=KeyError)
        if value is KeyError or value is None:
            first = key.partition(".")[0]
            raise ValueError(
                f"expected {key!r} in the configuration, which this goal needs; choose one, such as {first}=NAME "
                "(ptq-diffusion --help lists the names)"
            )
        group, option = _parent(selection, key)
        group[option] = plain(value) if OmegaConf.is_config(value) else value
    for key in without:
        group, option = _parent(selection, key)
        del group[option]
    used = {owner(target, plugins_of(cfg)) for target in targets(selection)} - {None}
    if used:
        selection[PLUGINS] = sorted(map(str, used))
    return selection


def _parent(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a dotted key, made where there is none, and the last part of the key."""
    *groups, option = key.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
    return tree, option


def same_numbers(node: object) -> object:
    """A plain configuration in which 1.0 and 1, which are one value of an option, are written alike."""
    if isinstance(node, dict):
        return {key: same_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [same_numbers(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node
