"""Composition under guard: what Hydra has composed is examined before Hydra builds or writes anything of it.

Hydra constructs callbacks, logging handlers, launchers and sweepers from the node `hydra` of a configuration, before an
experiment begins. `GuardedLoader` stands where all compositions pass: single runs, help, and each job of a sweep.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal import hydra as internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.command.check.hydra_node import require_harmless, require_shown
from ptq_diffusion.command.check.typed_plugins import require_typed
from ptq_diffusion.command.check.unread import require_read

TYPED = ("main", "command-line")
"""Providers of the search path that --config-path and --config-dir name."""


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader of configurations, which refuses those that would run, import or write something.

    Raises:
        ValueError: by every method: a search path that is a package, which would be imported, a node `hydra` that is
            not harmless, or reaches out of the run without the command line showing it, plugins that it does not
            show, or options that it shows and that would not be read.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        _require_folders([place.path for place in config_search_path.get_path() if place.provider in TYPED])
        super().__init__(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        cfg = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        require_harmless(cfg.hydra)
        # Without a primary configuration there is no experiment: --hydra-help describes Hydra's own options.
        if config_name is not None:
            require_shown(cfg.hydra, overrides)
            require_typed(cfg, overrides)
            require_read(cfg, overrides)
        return cfg

    def _process_config_searchpath(
        self, config_name: str | None, parsed_overrides: list[Override], repo: CachingConfigRepository
    ) -> None:
        primary = None if config_name is None else repo.load_config(config_path=config_name)
        configured: Any = primary and OmegaConf.to_container(primary.config, resolve=False)
        node = configured.get("hydra") if isinstance(configured, dict) else None
        places = [node.get("searchpath") if isinstance(node, dict) else None]
        places += [word.value() for word in parsed_overrides if word.get_key_element() == "hydra.searchpath"]
        for place in places:
            _require_folders(place)
        super()._process_config_searchpath(config_name, parsed_overrides, repo)


@contextmanager
def guarded() -> Iterator[None]:
    """Within this context Hydra composes with a `GuardedLoader`; it offers no way of its own to choose a loader."""
    before = getattr(internals, "ConfigLoaderImpl")  # noqa: B009
    setattr(internals, "ConfigLoaderImpl", GuardedLoader)  # noqa: B010
    try:
        yield
    finally:
        setattr(internals, "ConfigLoaderImpl", before)  # noqa: B010


def _require_folders(places: object) -> None:
    """Refuse a place that is no folder; what is no list of texts is left to Hydra, which refuses it."""
    for place in places if isinstance(places, Sequence) and not isinstance(places, str) else [places]:
        scheme = place.partition("://")[0] if isinstance(place, str) and "://" in place else "file"
        if scheme != "file" or (isinstance(place, str) and "${" in place):
            raise ValueError(
                f"expected folders of configurations, got {place!r}, which may be imported; give a folder's path"
            )
