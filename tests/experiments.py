"""A tiny model on disk, and experiments on it that run in a second or two."""

import io
import json
import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from PIL import Image

from ptq_diffusion.command.experiment import run
from ptq_diffusion.main import main
from tests.job import TINY, Place, complete, started
from tests.words import quick

CONF = Path(__file__).parents[1] / "conf"


def composed(*overrides):
    """The configuration that the command line would give an experiment."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.fixture
def tiny(tiny_model_folder, tmp_path):
    """Overrides that make any experiment small: a tiny model, a few images and steps, files below tmp_path."""
    return [
        "model=diffusers",
        "feature=cifar10net",
        f"model.path={tiny_model_folder()}",
        "sampler.steps=3",
        "images=5",
        "seeds=[0,1]",
        "micro_batch=4",
        "calibration.images=4",
        "drift.images=2",
        "noise.images=7",
        "judging.replicates=5",
        "judging.neighbours=1",
        "runtime.accelerator=cpu",
        "runtime.progress=false",
        "logger=none",
        f"outputs={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def make(tiny, capsys):
    """Run one experiment with further overrides; the path that it prints last."""

    def run_one(*overrides):
        run(composed(*quick([*tiny, *overrides])))
        said = capsys.readouterr().out
        sys.stdout.write(said)
        return Path(said.strip().splitlines()[-1])

    return run_one


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder in which the tests of a module make once what they share."""
    return tmp_path_factory.mktemp("shared") / "outputs"


@pytest.fixture
def shared(make, outputs):
    """As `make`, in the folder that the tests of a module share."""
    return lambda *words: make(*words, f"outputs={outputs}")


@pytest.fixture
def report(make):
    """Run one experiment with further overrides; its report.json, provenance apart, and the folder that holds it."""

    def run_one(*overrides):
        path = make(*overrides)
        content = json.loads(path.read_text())
        del content["provenance"]
        return content, path.parent

    return run_one


@pytest.fixture
def command(tiny, monkeypatch, capsys):
    """Run the command line; what it prints."""

    def run_one(*arguments, tiny=tuple(tiny)):
        # A command of its own, which is nothing tiny, has its options behind it.
        flags = [argument for argument in arguments if tiny and argument.startswith("-")]
        overrides = [argument for argument in arguments if argument not in flags]
        monkeypatch.setattr(
            sys, "argv", ["ptq-diffusion", *flags, *(quick([*tiny, *overrides]) if tiny else overrides)]
        )
        main()
        return capsys.readouterr().out

    return run_one


def write_parquet(folder, split, images, labels):
    cells = []
    for image in images:
        encoded = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(encoded, "png")
        cells.append({"bytes": encoded.getvalue(), "path": None})
    table = pyarrow.table({"img": cells, "label": labels.tolist()})
    pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def images_folder(tmp_path):
    """Dark images of class 0 and bright ones of class 1, as the parquet shards of a data set."""
    folder = tmp_path / "images"
    folder.mkdir()
    for split, count, seed in (("train", 32, 0), ("test", 10, 1)):
        labels = torch.arange(count) % 2
        draw = torch.Generator().manual_seed(seed)
        images = torch.randint(60, (count, 3, 16, 16), generator=draw) + 150 * labels[:, None, None, None]
        write_parquet(folder, split, images.byte(), labels)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model_folder):
    """The outputs of a finished job, and the words that it was started with, but for `outputs`."""
    words, outputs = [*TINY, f"model.path={tiny_model_folder()}"], tmp_path_factory.mktemp("finished") / "outputs"
    before = sys.argv
    started(*quick([*words, f"outputs={outputs}"]))
    sys.argv = before
    return words, outputs


@pytest.fixture
def refused(finished, tiny_model_folder, tmp_path, monkeypatch, capfd):
    """From words and a way to break something to the message that the command ends with."""

    def run_one(words, prepare=lambda place: []):
        first, outputs = finished[0], tmp_path / "outputs"
        shutil.copytree(finished[1], outputs)
        model = tmp_path / "model"
        shutil.copytree(tiny_model_folder(), model)
        more = prepare(Place(outputs, tmp_path, model, monkeypatch))
        alone = words[:1] in (["collect"], ["doctor"])
        before = complete(outputs)
        monkeypatch.setattr(sys, "argv", sys.argv)
        with pytest.raises(SystemExit) as stop:
            started(*([*words, *more] if alone else quick([*first, f"outputs={outputs}", *words, *more])))
        monkeypatch.undo()
        assert "Traceback" not in capfd.readouterr().err
        assert complete(outputs).items() >= before.items(), "an artefact is gone or changed"
        return stop.value.code

    return run_one
