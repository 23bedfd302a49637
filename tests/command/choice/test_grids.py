"""Every experiment says what it is for, and every cell of every grid is an experiment that composes."""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[3]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def composed():
    """From overrides to the text of the configuration that the command would compose."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield cache(lambda *words: json.dumps(OmegaConf.to_container(compose("config", list(words))), sort_keys=True))


def grid(experiment):
    """The overrides of every cell, as Hydra's sweeper takes them from the file."""
    cfg = OmegaConf.load(ROOT / "conf" / "experiment" / f"{experiment}.yaml")
    params = OmegaConf.select(cfg, "hydra.sweeper.params", default={})
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [cell for batch in BasicSweeper.split_arguments(overrides, None) for cell in batch]


def folder(experiment):
    """The folder of an experiment below experiments/; tables of one paper share theirs, as do their runs."""
    cfg = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "experiment" / f"{experiment}.yaml"))
    name = cfg.get("name", "").split("/")[0]
    return name if (ROOT / "experiments" / name / "README.md").is_file() and name else experiment


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_cell_of_a_grid_composes_and_is_another_run(experiment, composed):
    cells = [composed(f"experiment={experiment}", *cell) for cell in grid(experiment)]
    assert len(cells) == len(set(cells)) >= 1


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_a_readme_whose_command_names_it(experiment):
    text = (ROOT / "experiments" / folder(experiment) / "README.md").read_text()
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    flag = "-m " if len(grid(experiment)) > 1 else ""
    assert any(f"ptq-diffusion {flag}experiment={experiment}" in command for command in commands), commands


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if len(grid(name)) > 1])
def test_a_grid_has_a_folder_of_runs_of_its_own(experiment):
    """So that it can be collected apart from runs of another protocol, and its README says so."""
    cfg = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "experiment" / f"{experiment}.yaml"))
    shared = folder(experiment)
    own = experiment if shared == experiment else f"{shared}/{experiment.removeprefix('ptqd_')}"
    assert cfg["name"].startswith(f"{own}/")
    assert f"collect outputs/runs/{shared}" in (ROOT / "experiments" / shared / "README.md").read_text()


def test_published_numbers_have_their_source():
    found = OmegaConf.to_container(OmegaConf.load(ROOT / "experiments" / "published.yaml"))
    assert found and all(set(row) >= {"bench", "sampler", "steps", "bits", "method", "fid", "src"} for row in found)
    assert {row["src"] for row in found} <= set("PRSC")


def test_readmes_name_options_that_exist(composed):
    """The first and the last cell of every command compose."""
    for path in sorted((ROOT / "experiments").glob("*/README.md")):
        for command in re.findall(
            r"^    (?:\S+=\S+ )*ptq-diffusion (?:-m )?(?!collect|convert|plan )(.+?)\s*$", path.read_text(), re.M
        ):
            words = shlex.split(command.partition("#")[0])
            overrides = OverridesParser.create().parse_overrides(words)
            (cells,) = BasicSweeper.split_arguments(overrides, None)
            assert composed(*cells[0]) and composed(*cells[-1]), path
