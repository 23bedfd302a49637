"""A signature follows the source that a stage runs, and no other."""

import ast
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.engine import store as store_module
from ptq_diffusion.engine.factory import plain, targets
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.source import OURS, Package
from ptq_diffusion.engine.stage import upstream
from ptq_diffusion.engine.store import Store, select, source
from ptq_diffusion.main import CONF

EDITS = {
    "sampler/loop.py": {"trajectories", "calibrate", "float_path", "noise", "samples_full_precision", "evaluate"},
    "quantizer/affine.py": {"calibrate", "noise", "samples_quantized", "samples_corrected", "evaluate"},
    "quantizer/range_search.py": {"calibrate", "noise", "samples_quantized", "samples_corrected", "evaluate"},
    "correction/method/ptqd.py": {"fit"},
    "correction/repair/affine.py": {"fit", "samples_corrected"},
    "metric/inference/bootstrap.py": {"evaluate"},
    "metric/distance/kid.py": {"evaluate"},
    "metric/feature/pixels.py": set(),
    "correction/method/none.py": set(),
    "sampler/ddpm.py": set(),
    "report/report.py": set(),
    "report/figures.py": set(),
    "stage/training/train_denoiser.py": set(),
    "correction/__init__.py": set(),
}


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of this package's source, and from a configuration to what each stage of a report runs of it."""
    root = tmp_path / "ptq_diffusion"
    shutil.copytree(OURS.root, root, ignore=lambda folder, names: [n for n in names if n.endswith(".safetensors")])

    def sources(cfg):
        ours = Package(root)
        monkeypatch.setattr(store_module, "OURS", ours)
        getfile = SimpleNamespace(getfile=lambda stage: ours.defining(stage.__module__))
        monkeypatch.setattr(store_module, "inspect", getfile)
        stages = [STAGES[name] for name in upstream(STAGES["evaluate"])]
        return {stage.name: source(stage, select(cfg, stage.uses)) for stage in stages}

    return root, sources


def test_an_edit_changes_the_source_of_what_runs_it(copied, tiny):
    root, sources = copied
    cfg = composed(*tiny, "correction=ptqd")
    before = sources(cfg)
    for file, expected in EDITS.items():
        text = (root / file).read_text()
        (root / file).write_text(text + "\nEDITED = True\n")
        now = sources(cfg)
        changed = {name for name in before if before[name] != now[name]}
        assert expected <= changed, f"{file} runs in {expected - changed}"
        assert changed == set() or expected, f"{file} runs in none of {changed}"
        (root / file).write_text(text)
    assert sources(cfg) == before


def test_a_signature_follows_the_source(tiny, tmp_path, monkeypatch):
    stage, cfg, runtime = STAGES["trajectories"], composed(*tiny), Runtime("cpu", False)
    own = Store(tmp_path, runtime).signature(stage, cfg)
    assert Store(tmp_path, runtime).signature(stage, cfg) == own
    monkeypatch.setattr(store_module, "source", lambda *_: "other")
    assert Store(tmp_path, runtime).signature(stage, cfg) != own


def test_a_new_correction_recomputes_no_image_of_another(copied, tiny):
    root, sources = copied
    cfg = composed(*tiny, "correction=ptqd")
    before = sources(cfg)
    (root / "correction" / "another.py").write_text("class Another:\n    pass\n")
    init = root / "correction" / "__init__.py"
    init.write_text("from ptq_diffusion.correction.another import Another\n" + init.read_text())
    assert sources(cfg) == before


def test_what_a_stage_calls_lies_in_its_closure(make, monkeypatch):
    """Every function of this package that `make` or `evidence` entered, seen by the interpreter's own tracing."""
    entered = {}

    def traced(function, stage):
        def run(self, cfg, *arguments):
            files = entered.setdefault(stage, (cfg, set()))[1]

            def note(frame, *_):
                if frame.f_code.co_name != "<module>":
                    files.add(frame.f_code.co_filename)

            before = sys.gettrace()
            sys.settrace(note)
            try:
                return function(self, cfg, *arguments)
            finally:
                sys.settrace(before)

        return run

    for stage in STAGES.values():
        for name in ("make", "evidence"):
            monkeypatch.setattr(stage, name, traced(getattr(stage, name), stage))
    words = ("images=3", "seeds=[0]", "noise.images=16", "feature=pixels", "judging.neighbours=1")
    make(*words, "correction=readout_matched")
    assert {stage.name for stage in entered} >= upstream(STAGES["evaluate"])
    for stage, (cfg, files) in entered.items():
        ran = {Path(file) for file in files if file.startswith(f"{OURS.root}/")}
        named = [OURS.defining(target) for target in targets(plain(cfg))]
        starts = [OURS.defining(stage.__module__), *(file for file in named if file)]
        assert ran, "the tracing sees nothing"
        assert ran <= OURS.closure(starts), f"{stage.name} runs {ran - OURS.closure(starts)}"


def test_an_init_only_passes_names_on():
    """Closures look through it, so nothing may happen in it."""
    for file in OURS.root.rglob("__init__.py"):
        for node in ast.parse(file.read_text()).body:
            described = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert described or isinstance(node, ast.ImportFrom | ast.Assign), f"{file}:{node.lineno}"


@pytest.mark.parametrize(
    ("dotted", "file"),
    [
        ("pack.deep.Thing", "deep/thing.py"),
        ("pack.deep.Thing.method.more", "deep/thing.py"),
        ("pack.deep.renamed", "deep/thing.py"),
        ("pack.deep.thing", "deep/thing.py"),
        ("pack.deep", "deep/__init__.py"),
        ("pack.deep.CONSTANT", "deep/__init__.py"),
        ("pack.deep.Path", "deep/__init__.py"),
        ("pack.twice", "deep/thing.py"),
        ("other.deep.Thing", None),
    ],
)
def test_a_name_is_found_where_it_is_defined(tmp_path, dotted, file):
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("from pack.deep import Thing as twice")
    (tmp_path / "pack" / "deep" / "thing.py").write_text("class Thing: ...")
    (tmp_path / "pack" / "deep" / "__init__.py").write_text(
        "from pathlib import Path\nfrom pack.deep.thing import Thing\n"
        "from pack.deep.thing import Thing as renamed\nCONSTANT = 1"
    )
    found = Package(tmp_path / "pack").defining(dotted)
    assert found == (None if file is None else tmp_path / "pack" / file)


def test_imports_inside_functions_and_in_circles_are_followed(tmp_path):
    (tmp_path / "pack").mkdir()
    for name, text in {
        "__init__": "",
        "a": "def late():\n    import pack.b",
        "b": "from pack import c\nimport os",
        "c": "from pack.a import late",
        "d": "",
    }.items():
        (tmp_path / "pack" / f"{name}.py").write_text(text)
    pack = Package(tmp_path / "pack")
    assert {file.stem for file in pack.closure([pack.defining("pack.a")])} == {"a", "b", "c"}


def test_the_source_of_what_a_configuration_names_is_that_of_the_stage(tiny):
    stage = STAGES["fit"]
    digests = {
        name: source(stage, select(composed(*tiny, f"correction={name}"), stage.uses)) for name in ("none", "ptqd")
    }
    assert digests["none"] != digests["ptqd"]
