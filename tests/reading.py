"""Shortens what Hydra does again for each of the thousands of compositions of the tests; none of them differs by it.

A composition reads forty files, whose texts are parsed once here, and makes a map of all choices for each.
"""

from pathlib import Path

from hydra._internal import defaults_list
from omegaconf import OmegaConf


def parsed_once(load):
    """A function as `OmegaConf.load`, which remembers what texts hold, and not what they fail with."""
    known = {}

    def read(file):
        text = Path(file).read_text(encoding="utf-8") if isinstance(file, str | Path) else file.read()
        if text not in known:
            if not isinstance(file, str | Path):
                file.seek(0)
            known[text] = OmegaConf.to_container(load(file), resolve=False)
        return OmegaConf.create(known[text])

    return read


def made_where_used(interpolation_map):
    """A function as Hydra's, which makes its map for those lists of defaults only that have an interpolation."""

    def made(overrides, defaults, self_added):
        used = any(default.is_interpolation() for default in defaults if not default.is_self())
        return interpolation_map(overrides, defaults, self_added) if used else OmegaConf.create({})

    return made


defaults_list._create_interpolation_map = made_where_used(defaults_list._create_interpolation_map)
OmegaConf.load = staticmethod(parsed_once(OmegaConf.load))
