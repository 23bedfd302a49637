"""Plugins, which are code that runs: only the command line may name them, where their user sees them."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.engine.plugins import PLUGINS


def require_typed(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuse plugins that a configuration brings in.

    Args:
        cfg: as composed, nothing of it resolved yet.
        words: the overrides.

    Raises:
        ValueError: no override names them.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    names = plain.get(PLUGINS) if isinstance(plain, dict) else None
    if names and not any(word.partition("=")[0].lstrip("+") == PLUGINS for word in words):
        text = ",".join(map(str, names)) if isinstance(names, list) else names
        raise ValueError(
            f"expected plugins on the command line only, for their code runs, got {PLUGINS}=[{text}] from a "
            f"configuration; write {PLUGINS}=[{text}] there if you trust it"
        )
