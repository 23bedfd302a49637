"""Selects the part of a configuration that a stage may read."""

from collections.abc import Iterable

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
    selection = OmegaConf.create({})
    for key in keys:
        value = OmegaConf.select(cfg, key, throw_on_missing=True, default=KeyError)
        if value is KeyError or value is None:
            group = key.partition(".")[0]
            raise ValueError(
                f"expected {key!r} in the configuration, which this goal needs; choose one, such as {group}=NAME "
                "(ptq-diffusion --help lists the names)"
            )
        OmegaConf.update(selection, key, plain(value) if OmegaConf.is_config(value) else value, force_add=True)
    for key in without:
        group, _, option = key.rpartition(".")
        del OmegaConf.select(selection, group)[option]
    used = {owner(target, plugins_of(cfg)) for target in targets(plain(selection))} - {None}
    if used:
        OmegaConf.update(selection, PLUGINS, sorted(map(str, used)), force_add=True)
    return selection


def same_numbers(node: object) -> object:
    """A plain configuration in which 1.0 and 1, which are one value of an option, are written alike."""
    if isinstance(node, dict):
        return {key: same_numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [same_numbers(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node
