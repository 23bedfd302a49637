"""A signature follows the source that a stage runs, and no other."""

import ast
import shutil

import pytest
from hydra import compose, initialize_config_dir

from ptq_diffusion.command.experiment import STAGES
from ptq_diffusion.engine import signature as signature_module
from ptq_diffusion.engine.code.source import OURS, Definition, Package
from ptq_diffusion.engine.code.syntax import References, Syntax
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.selection import select
from ptq_diffusion.engine.signature import closure, source
from ptq_diffusion.engine.stage import upstream
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.main import CONF

MEASURED = ("step_signal", "changes")
LEARNED = ("offers", "reconstruct", "activation_scales")
SAMPLES = ("samples_full_precision", "samples_quantized", "samples_corrected")
ALL = upstream(STAGES["evaluate"]) - {"prompts"}  # which is of models with text encoders
EDITS = {
    "sampler/loop.py": {"trajectories", "float_path", "noise", "fit", "drift", *SAMPLES, *MEASURED},
    "sampler/ddim.py": ALL - {"quantize", "outside_plan", "samples_corrected"},
    "network/insertion.py": {"quantize", *LEARNED, *MEASURED},
    # The samplings may take ranges at run time; of evaluations, behind them all, the condition of a chunk may be any.
    "quantizer/range_search.py": {"calibrate", "quantize", "noise", "fit", "drift", "evaluate", *LEARNED, *MEASURED}
    | {"samples_quantized", "samples_corrected"},
    "engine/workshop.py": ALL,
    "engine/store.py": set(),
    "engine/runtime.py": set(),
    "engine/factory.py": set(),
    "artefact/files.py": set(),
    "artefact/tensors.py": set(),
    "correction/method/ptqd.py": {"fit", "additions"},
    "correction/repair/affine.py": {"additions", "fit", "samples_corrected", "drift", "evaluate"},
    "metric/inference/bootstrap.py": {"evaluate"},
    "metric/feature/pixels.py": set(),
    "correction/method/none.py": set(),
    "sampler/ddpm.py": set(),
    "report/report.py": set(),
    "report/figures.py": set(),
    "stage/training/train_denoiser.py": set(),
    "correction/__init__.py": set(),
}


def name(file):
    return file.relative_to(OURS.root).as_posix()


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def remembered(function, key):
    """A function of one argument that is called once for each key; what it was called with is kept, and its id."""
    known = {}

    def remember(argument):
        if (name := key(argument)) not in known:
            known[name] = function(argument), argument
        return known[name][0]

    return remember


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of this package's source, and from a configuration to what each stage of a report runs of it."""
    root = tmp_path / "ptq_diffusion"
    shutil.copytree(OURS.root, root, ignore=lambda folder, names: [n for n in names if n.endswith(".safetensors")])

    # An edit leaves the other files as they were, whose text is read by Python once.
    monkeypatch.setattr(Syntax, "of", remembered(Syntax.of, lambda file: (file, file.read_bytes())))
    monkeypatch.setattr(References, "of", remembered(References.of, lambda nodes: tuple(map(id, nodes))))

    def sources(cfg):
        ours = Package(root)
        monkeypatch.setattr(signature_module, "OURS", ours)
        stages = [STAGES[name] for name in ALL]
        return {stage.name: source(stage, select(cfg, stage.uses)) for stage in stages}

    return root, sources


def test_an_edit_changes_the_source_of_what_runs_it(copied, tiny):
    root, sources = copied
    cfg = composed(*tiny, "correction=ptqd")
    before = sources(cfg)
    wrong = {}
    for file, expected in EDITS.items():
        text = (root / file).read_text()
        (root / file).write_text(text + "\nEDITED = True\n")
        now = sources(cfg)
        changed = {name for name in before if before[name] != now[name]}
        wrong |= {file: changed ^ expected} if changed != expected else {}
        (root / file).write_text(text)
    assert wrong == {}
    assert sources(cfg) == before


def test_a_signature_follows_the_source(tiny, tmp_path, monkeypatch):
    stage, cfg, runtime = STAGES["trajectories"], composed(*tiny), Runtime("cpu", False)
    own = Store(tmp_path, Workshop(runtime)).signature(stage, cfg)
    assert Store(tmp_path, Workshop(runtime)).signature(stage, cfg) == own
    monkeypatch.setattr(signature_module, "source", lambda *_: "other")
    assert Store(tmp_path, Workshop(runtime)).signature(stage, cfg) != own


def test_comments_and_docstrings_are_in_no_source(copied, tiny):
    root, sources = copied
    cfg = composed(*tiny, "correction=ptqd")
    before = sources(cfg)
    described = [file for file in root.rglob("*.py") if ('"""' in file.read_text())]
    assert len(described) > 100
    for file in described:
        text = file.read_text().replace('"""', '"""Described anew. ', 1)
        file.write_text(f"# A comment.\n{text}\n# Another.\n")
    assert sources(cfg) == before


def test_what_is_float_depends_on_no_quantizer_and_no_correction(tiny):
    names = [path.stem for path in (CONF / "correction").glob("*.yaml")]
    assert len(names) > 10
    for correction in names:
        cfg = composed(*tiny, f"correction={correction}")
        for stage in ("trajectories", "float_path", "samples_full_precision"):
            reached = closure(STAGES[stage], select(cfg, STAGES[stage].uses))
            folders = {name(definition.file).split("/")[0] for definition in reached}
            assert folders == {"data", "engine", "model", "numeric", "sampler", "stage"}, (stage, correction)


def test_a_new_correction_recomputes_no_image_of_another(copied, tiny):
    root, sources = copied
    cfg = composed(*tiny, "correction=ptqd")
    before = sources(cfg)
    (root / "correction" / "another.py").write_text("class Another:\n    pass\n")
    init = root / "correction" / "__init__.py"
    init.write_text("from ptq_diffusion.correction.another import Another\n" + init.read_text())
    assert sources(cfg) == before


def test_an_init_only_passes_names_on():
    """Closures look through it, so nothing may happen in it."""
    # The package's own passes names on when they are asked for.
    for file in set(OURS.root.rglob("__init__.py")) - {OURS.root / "__init__.py"}:
        for node in ast.parse(file.read_text()).body:
            described = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert described or isinstance(node, ast.ImportFrom | ast.Assign), f"{file}:{node.lineno}"


@pytest.mark.parametrize(
    ("dotted", "file", "name"),
    [
        ("pack.deep.Thing", "deep/thing.py", "Thing"),
        ("pack.deep.Thing.method.more", "deep/thing.py", "Thing"),
        ("pack.deep.renamed", "deep/thing.py", "Thing"),
        ("pack.deep.thing", "deep/thing.py", ""),
        ("pack.deep.thing.Thing.method", "deep/thing.py", "Thing"),
        ("pack.deep.thing.passed_on", "a.py", "a"),
        ("pack.deep", "deep/__init__.py", ""),
        ("pack.deep.CONSTANT", "deep/__init__.py", "CONSTANT"),
        ("pack.deep.Path", "deep/__init__.py", "Path"),
        ("pack.twice", "deep/thing.py", "Thing"),
        ("other.deep.Thing", None, None),
    ],
)
def test_a_name_is_found_where_it_is_defined(tmp_path, dotted, file, name):
    pack = package(
        tmp_path,
        {
            "__init__": "from pack.deep import Thing as twice",
            "a": "def a(): ...",
            "deep/thing": "from pack.a import a as passed_on\nclass Thing: ...",
            "deep/__init__": "from pathlib import Path\nfrom pack.deep.thing import Thing\n"
            "from pack.deep.thing import Thing as renamed\nCONSTANT = 1",
        },
    )
    assert pack.defining(dotted) == (None if file is None else Definition(tmp_path / "pack" / file, name))


def package(folder, files):
    for file, text in {"__init__": "", **files}.items():
        path = folder / "pack" / f"{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Package(folder / "pack")


PARTS = {
    "imports in functions and circles": (
        {
            "a": "def start():\n    import pack.b\n    pack.b",
            "b": "from pack import c\ndef b(): c",
            "c": "import pack.a",
        },
        {"a.start", "b", "b.b", "c"},
    ),
    "what a name stands for, and no more": (
        {
            "a": "from pack.b import used, other\ndef start(): used()",
            "b": "def used(): more()\ndef more(): 0\ndef other(): 0",
        },
        {"a.start", "b.used", "b.more"},
    ),
    "no annotation": (
        {"a": "from pack.b import B\ndef start(b: B) -> B:\n    c: B = 1", "b": "class B: ..."},
        {"a.start"},
    ),
    "methods by their names": (
        {
            "a": "from pack.b import B\ndef start(): B().used()",
            "b": "class B:\n  def used(self): 0\n  def other(self): 0",
        },
        {"a.start", "b.B", "b.B.used"},
    ),
    "a method of the class that is named, and not its namesakes": (
        {
            "a": "from pack.b import B, C\ndef start(): C, B.of()",
            "b": "class B:\n  def of(): 0\nclass C:\n  def of(): 0",
        },
        {"a.start", "b.B", "b.C", "b.B.of"},
    ),
    "a method that the class that is named inherits": (
        {"a": "from pack.b import B\ndef start(): B.of()", "b": "class A:\n  def of(): 0\nclass B(A): ..."},
        {"a.start", "b.A", "b.B", "b.A.of"},
    ),
    "special methods and those that a base of another package calls": (
        {
            "a": "from pack.b import B\ndef start(): B",
            "b": "from pack.c import C\nclass B(C):\n  def __call__(self): 0\n  def forward(_): 0\n  def other(_): 0",
            "c": "import torch\nclass C(torch.nn.Module):\n  def forward(self): 0",
        },
        {"a.start", "b.B", "b.B.__call__", "b.B.forward", "c.C", "c.C.forward"},
    ),
    "all methods below a base that nothing is known of": (
        {"a": "import odd\nclass start(odd.Base):\n  def hook(self): helper()\ndef helper(): 0"},
        {"a.start", "a.start.hook", "a.helper"},
    ),
    "what is done beside definitions": (
        {"a": "from pack.b import register\nregister(1)\ndef start(): 0", "b": "def register(x): 0"},
        {"a.start", "b.register"},
    ),
}


@pytest.mark.parametrize(("files", "expected"), PARTS.values(), ids=PARTS)
def test_a_closure_follows(tmp_path, files, expected):
    pack = package(tmp_path, files)
    reached = pack.closure([pack.defining("pack.a.start")])
    assert {f"{found.file.stem}.{found.name}".rstrip(".") for found in reached} == expected


def test_the_source_of_what_a_configuration_names_is_that_of_the_stage(tiny):
    stage = STAGES["fit"]
    digests = {
        name: source(stage, select(composed(*tiny, f"correction={name}"), stage.uses)) for name in ("none", "ptqd")
    }
    assert digests["none"] != digests["ptqd"]
