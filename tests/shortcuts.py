"""Shortcuts past what libraries do again for each of thousands of tests, and none of them looks at.

A composition of Hydra's reads forty files, whose texts are parsed once here, and makes a map of all choices for each; a
command line is composed once more to see whether it asks for a mode.
Drawing its figures takes a third of a tiny experiment.
"""

import io
from pathlib import Path

import pytest
from hydra._internal import defaults_list
from hydra._internal.hydra import Hydra
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from ptq_diffusion.command.check.composition import TYPED
from ptq_diffusion.command.conf import CONF


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


def mode_where_asked(get_mode):
    """A method as Hydra's, which composes only where other files than the package's, or words, may ask for a mode."""

    def mode(hydra, config_name, overrides):
        places = hydra.config_loader.get_search_path().get_path()
        ours = {place.path for place in places if place.provider in TYPED} == {f"file://{CONF}"}
        return None if ours and "hydra" not in " ".join(overrides) else get_mode(hydra, config_name, overrides)

    return mode


Hydra.get_mode = mode_where_asked(Hydra.get_mode)
defaults_list._create_interpolation_map = made_where_used(defaults_list._create_interpolation_map)
OmegaConf.load = staticmethod(parsed_once(OmegaConf.load))


def blank():
    """A PNG of one pixel."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "png")
    return file.getvalue()


BLANK = blank()


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Figures are set up, and blank files written in their place, unless a test is marked by `figures`."""
    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_bytes(BLANK))
