"""The presets of PTQD's tables run end to end on small networks, and their table sets ours beside theirs."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from ptq_diffusion.command.conf import CONF
from ptq_diffusion.model import DiffusersDenoiser
from ptq_diffusion.model.original import convert
from tests.model import pipelines
from tests.model.original.test_conversion import Origin

FOLDER = Path(__file__).parents[3] / "experiments" / "ptqd_tables"
PARAMETERS = {
    "imagenet": 400_920_579,
    "bedroom": 274_056_163,
    "church": 294_966_916,
    "dit_xl_2_256": 749_826_464,
    "sd15": 859_520_964,
}
"""Of the networks at full size, as the shapes in their checkpoints have it."""
PRESETS = {
    "ptqd_imagenet_250": "imagenet",
    "ptqd_imagenet_20": "imagenet",
    "ptqd_terms": "imagenet",
    "ptqd_bedroom": "bedroom",
    "ptqd_church": "church",
    "ptqd_dit": "dit",
    "ptqd_sd15": "stable diffusion",
}
SMALL = (
    "sampler.steps=2 images=2 seeds=[0,1] micro_batch=2 calibration.images=2 noise.images=2 feature=pixels "
    "judging.replicates=2 judging.neighbours=1"
).split()


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("ptqd_tables", FOLDER / "table.py")
    module = sys.modules["ptqd_tables"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder of a small converted network of each kind, made once."""
    folders = {}

    def make(name):
        if name not in folders:
            home = tmp_path_factory.mktemp(name)
            with torch.no_grad():
                origin = Origin(name, home)
            folders[name] = convert(origin.checkpoint, origin.configuration, home / "converted").folder
        return folders[name]

    return make


@pytest.fixture(scope="module")
def small(converted, tmp_path_factory):
    """From the kind of a network to the words that choose a small one."""

    def make(kind):
        if kind in PARAMETERS:
            return [f"model.path={converted(kind)}"]
        home = tmp_path_factory.mktemp(kind.replace(" ", "_"))
        if kind == "dit":
            pipelines.dit(home)
            return [f"model.path={home}"]
        pipelines.stable_diffusion(home / "words").save_pretrained(home / "model")
        (home / "captions.txt").write_text("a cat\ntwo dogs\n")
        return [f"model.path={home / 'model'}", f"condition.source.path={home / 'captions.txt'}"]

    return make


def benches(tables, preset):
    return [bench for bench in tables.BENCHES if bench.experiment == preset]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs_to_a_row_of_its_table(preset, small, make, tmp_path, tables):
    sweep = yaml.safe_load((CONF / "experiment" / f"{preset}.yaml").read_text())["hydra"]["sweeper"]["params"]
    bits = sweep["bitwidth"].split(",")[-1]
    assert "ptqd" in sweep["correction"].split(",")
    make(f"experiment={preset}", *small(PRESETS[preset]), *SMALL, f"bitwidth={bits}", "correction=ptqd")
    (bench, *_) = benches(tables, preset)
    rows, row = tables.ours(bench, tmp_path / "outputs"), (tables.BITS.get(bits, "step MP"), "ptqd")
    assert rows.keys() == {tables.FLOAT, row}
    console = Console(width=80)
    with console.capture() as capture:
        console.print(tables.table(bench, tmp_path / "outputs"))
    (line,) = [line for line in capture.get().splitlines() if row[0] in line and " ptqd " in line]
    numbers = line.split("ptqd")[1].split()
    assert f"{rows[row]:.2f}" in numbers
    if row in tables.published(bench):
        assert f"{tables.published(bench)[row]:.2f}" == numbers[0]


def test_published_rows_are_those_of_their_table_alone(tables):
    """The headline: at 250 steps W4A8 is 0.06 above full precision."""
    rows = [tables.published(bench) for bench in tables.BENCHES]
    assert all(rows)
    assert rows[0]["W4A8", "ptqd"] - rows[0][tables.FLOAT] == pytest.approx(0.06)
    assert rows[1][tables.FLOAT] != rows[2][tables.FLOAT], "of eta 0 and of eta 1"
    assert ("W4A8", "d2_dpm") in rows[2] and ("W4A8", "d2_dpm") not in rows[1]
    harmed = {bench.experiment: tables.published(bench) for bench in tables.BENCHES}
    assert harmed["ptqd_dit"]["W4A8", "ptqd"] > harmed["ptqd_dit"]["W4A8", "q_diffusion"]
    assert harmed["ptqd_sd15"]["W8A8", "ptqd"] > harmed["ptqd_sd15"]["W8A8", "none"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_configurations_of_full_size_rows_are_those_of_the_checkpoints(name, tables):
    bench = next(bench for bench in tables.BENCHES if bench.configs.name == name)
    assert DiffusersDenoiser.outline(str(bench.configs)).architecture().parameters == PARAMETERS[name]
    needs, costs = tables.cost(bench, 1e13)
    assert bench.checkpoint in needs and f"experiment={bench.experiment}" in needs
    assert re.search(r" passes .* \d+ (h|days|d) at 1e\+13 a second", costs)
    (config,) = [file for part in ("unet", "transformer") for file in bench.configs.glob(f"{part}/config.json")]
    assert json.loads(config.read_text())["sample_size"] in (32, 64)
