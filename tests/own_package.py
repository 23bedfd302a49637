"""The package of the page about networks of one's own, in a folder of its own."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ptq_diffusion.engine.plugins import Plugin

PAGE = (Path(__file__).parents[1] / "docs" / "how_to" / "own_network.md").read_text()
CODE, YAML = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[1] for kind in ("python", "yaml"))
NAME = "my_package"
WORDS = ("model=my_network", "model.width=4", f"plugins=[{NAME}]")


def forgotten(name=NAME):
    """Nothing of a package is known to this process any more."""
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]
    Plugin.of.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """The folder that holds the package, its configurations and its weights, which this process finds packages in."""
    folder = tmp_path / "own"
    for path, text in {
        f"{NAME}/__init__.py": "",
        f"{NAME}/network.py": CODE,
        "conf/model/my_network.yaml": YAML,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    names: dict[str, object] = {}
    exec(CODE, names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(names["Small"](4).state_dict(), folder / "weights.safetensors")
    monkeypatch.syspath_prepend(str(folder))
    forgotten()
    yield folder
    forgotten()
