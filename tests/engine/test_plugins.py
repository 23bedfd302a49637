"""Packages of the user's own: what may be imported and built of them, and the one line that refuses all else."""

import sys

import pytest
from omegaconf import OmegaConf

from ptq_diffusion.correction.contract import Requirements
from ptq_diffusion.engine.code.source import OURS
from ptq_diffusion.engine.factory import construct, require_kind
from ptq_diffusion.engine.plugins import Plugin, require_plugins
from ptq_diffusion.engine.selection import select
from ptq_diffusion.engine.signature import closure, source
from ptq_diffusion.metric import Metric
from ptq_diffusion.model import Denoiser
from ptq_diffusion.quantizer import Quantizer
from ptq_diffusion.sampler import Sampler
from ptq_diffusion.stage.trajectories import Trajectories
from tests.job import assert_clear
from tests.own_package import NAME, forgotten

PARTS = """
import os
from os import system
from torch.nn import Linear
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.correction import NoCorrection
from ptq_diffusion.metric import FID
from ptq_diffusion.quantizer import AffineQuantizer, MinMax
from ptq_diffusion.sampler import DDIM, Sampler


class Correction(NoCorrection):
    pass


class Grid(AffineQuantizer):
    pass


class Steps(DDIM):
    pass


class Unfinished(Sampler):
    pass


class Distance(FID):
    name = "distance"


class Free:
    pass


class Unannotated(DDIM):
    def __init__(self, steps):
        pass


def function():
    return 1
"""


@pytest.fixture
def parts(own_package):
    """The page's package with a module of other classes."""
    (own_package / NAME / "parts.py").write_text(PARTS)
    return own_package


def node(target, plugins=(NAME,), **options):
    whole = {"plugins": list(plugins), "part": {"_target_": target} | options}
    return OmegaConf.create(whole).part


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("Correction", Requirements, {}),
        ("Steps", Sampler, {"steps": 3, "eta": 0.0, "scheduler": {}}),
        ("Distance", Metric, {}),
    ],
)
def test_every_kind_of_class_is_built_where_its_package_is_named(parts, name, kind, options):
    part = node(f"{NAME}.parts.{name}", **options)
    require_kind(part, kind, "part")
    assert isinstance(construct(part), kind)
    with pytest.raises(ValueError, match=f"part to be a {Denoiser.__name__}"):
        require_kind(part, Denoiser, "part")
    with pytest.raises(ValueError, match="names a class of"):
        construct(node(f"{NAME}.parts.{name}", (), **options))


def test_a_quantizer_that_waits_for_its_bits(parts):
    search = {"_target_": "ptq_diffusion.quantizer.MinMax"}
    channels = {"_target_": "ptq_diffusion.quantizer.PerChannel"}
    grid = {"symmetric": True, "granularity": channels, "range_search": search, "bins": 64}
    options = {"_partial_": True, **grid}
    part = node(f"{NAME}.parts.Grid", **options)
    require_kind(part, Quantizer, "part", partial=True)
    assert construct(part)(4).grid.bits == 4


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("parts.Free", "derived from one of ptq_diffusion"),
        ("parts.function", "derived from one of ptq_diffusion"),
        ("parts.os.system", "derived from one of ptq_diffusion"),
        ("parts.system", "derived from one of ptq_diffusion"),
        ("parts.Linear", "derived from one of ptq_diffusion"),
        ("parts.Absent", "no Absent where my_package.parts.Absent names one"),
        ("absent.Class", "no absent where"),
        ("parts.Unfinished", "it lacks table"),
        ("broken.Class", "an error when my_package.broken was imported .ZeroDivisionError: division by zero"),
    ],
)
def test_nothing_else_of_a_package_is_built(parts, target, message):
    (parts / NAME / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=message):
        construct(node(f"{NAME}.{target}"))


def test_an_option_without_a_type_is_refused(parts):
    with pytest.raises(ValueError, match="steps of Unannotated to be annotated"):
        construct(node(f"{NAME}.parts.Unannotated", steps=3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("single", "single.py; a package is a folder with __init__.py"),
        ("bare", "a folder without __init__.py"),
        ("failing", "an error when failing was imported .RuntimeError: not today"),
        ("garbled", "a syntax error in .*garbled"),
        ("ptq_diffusion", "got another name"),
        ("a.b", "got another name"),
        ("../x", "got another name"),
    ],
)
def test_what_is_no_package_is_refused(name, message, parts):
    (parts / "single.py").write_text("")
    files = {"bare/x.py": "", "failing/__init__.py": "raise RuntimeError('not today')", "garbled/__init__.py": "def"}
    for path, text in files.items():
        (parts / path).parent.mkdir()
        (parts / path).write_text(text)
    with pytest.raises(ValueError, match=message):
        require_plugins([name])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("plugins=[nowhere]", "got none of this name; pip install it"),
        ("plugins=my_package", "plugins"),
        ("sampler._target_=my_package.parts.Steps", "names a class of"),
    ],
)
def test_the_command_refuses_in_one_line(word, message, parts, refused):
    assert_clear(refused([word]), message)


@pytest.mark.parametrize("where", ["experiment", "sweep", "earlier run"])
def test_a_configuration_imports_nothing_by_itself(where, parts, tiny, command):
    """Neither a file of an experiment, nor what it sweeps over, nor the configuration of another's run."""
    folder = parts / "conf" / "experiment"
    folder.mkdir()
    (parts / NAME / "__init__.py").write_text("raise AssertionError('imported')\n")
    hidden = f"plugins: [{NAME}]" if where != "sweep" else f"hydra: {{sweeper: {{params: {{plugins: '[{NAME}]'}}}}}}"
    (folder / "hidden.yaml").write_text(f"# @package _global_\n{hidden}\n")
    (parts / "config.yaml").write_text(f"outputs: outputs\nplugins: [{NAME}]\n")
    words = [*["-m"] * (where == "sweep"), f"--config-dir={parts / 'conf'}", "experiment=hidden"]
    with pytest.raises(SystemExit) as stop:
        command(*(words if where != "earlier run" else [f"--config-path={parts}"]), tiny=())
    assert_clear(stop.value.code, r"plugins on the command line only|option of the experiment")


def test_a_part_of_a_configuration_takes_along_the_packages_that_it_names():
    cfg = OmegaConf.create(
        {"plugins": ["a", "b"], "model": {"x": {"_target_": "b.Net"}}, "sampler": {"_target_": "c.D"}}
    )
    assert "plugins" not in select(cfg, ["sampler"])
    assert select(cfg, ["model"]).plugins == ["b"] == select(cfg, ["model", "sampler"]).plugins


def test_the_source_of_a_stage_holds_what_a_package_leads_to_and_leaves_its_own_to_its_digest(own_package, composed):
    target = f"{NAME}.network.MyDenoiser"
    cfg = composed("+plugins=[my_package]", f"+model={{_target_:{target}}}")
    part = select(cfg, ["model"])
    files = {definition.file for definition in closure(Trajectories, part)}
    assert OURS.root / "model" / "own" / "module_denoiser.py" in files
    assert {*Plugin.of(NAME).files} < files
    before = source(Trajectories, part)
    text = own_package / NAME / "network.py"
    text.write_text(text.read_text().replace("t / 160", "t / 170"))
    digest = Plugin.of(NAME).digest
    assert digest == Plugin.of(NAME).digest, "as it was when this process first asked"
    forgotten()
    assert Plugin.of(NAME).digest != digest
    assert source(Trajectories, part) == before


def test_packages_are_imported_once_they_are_named(own_package):
    assert NAME not in sys.modules
    require_plugins([NAME])
    assert NAME in sys.modules
    assert Plugin.of(NAME).version is None
    assert Plugin.of("pytest").version == pytest.__version__


def test_weights_of_another_width_are_refused_in_one_line(own_package):
    options = {"_target_": f"{NAME}.network.MyDenoiser", "path": str(own_package / "weights.safetensors"), "width": 8}
    cfg = OmegaConf.create({"model": options, "plugins": [NAME]})
    with pytest.raises(ValueError, match="options of my_package.network.MyDenoiser that fit its weights") as refused:
        construct(cfg.model)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
