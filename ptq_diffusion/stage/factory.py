"""The one place where a configuration becomes objects."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

ALLOWED = ("ptq_diffusion.", "diffusers.", "torch.optim.")


def construct(node: DictConfig, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Build what `node._target_` names, with the node's other keys and `kwargs` as its arguments.

    Raises:
        ValueError: a target lies outside this package, diffusers and torch.optim. What a constructor raises passes
            through.
    """
    for target in targets(plain(node)):
        # By what it is and not by its spelling alone: a module of ours may import one that is not.
        home = getattr(get_object(target), "__module__", "") if target.startswith(ALLOWED) else ""
        if not f"{home}.".startswith(ALLOWED):
            raise ValueError(f"expected a _target_ defined in one of {', '.join(ALLOWED)}, got {target!r}")
    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except InstantiationException as error:
        # What the object itself said is clearer than Hydra's account of it.
        raise error.__cause__ or error from None


def plain(node: DictConfig | ListConfig) -> Any:  # noqa: ANN401
    """A resolved configuration as dicts, lists and scalars."""
    return OmegaConf.to_container(node, resolve=True)


def targets(node: object) -> list[str]:
    """Every `_target_` in a plain configuration, at any depth."""
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for value in node.values() for target in targets(value)]
    if isinstance(node, list):
        return [target for value in node for target in targets(value)]
    return []
