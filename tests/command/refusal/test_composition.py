"""A configuration runs nothing: what it names below `hydra` is refused before Hydra builds, imports or writes it."""

import os
import re
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ptq_diffusion.command.check.hydra_node import require_harmless, require_shown
from ptq_diffusion.command.conf import CONF
from ptq_diffusion.engine.store import Store
from ptq_diffusion.main import main
from tests.job import assert_clear

MARK = "mark"
TOUCH = {"_target_": "pathlib.Path.touch", "_args_": ["@here/mark"]}
COPY = {"_target_": "shutil.copyfile", "src": "@here/source", "dst": "@here/mark"}
SPAWN = {"_target_": "setuptools._distutils.spawn.spawn", "cmd": ["touch", "@here/mark"]}
PICKLE = {"_target_": "torch.load", "f": "@here/source", "weights_only": False}
WRITER = {"class": "logging.FileHandler", "filename": "@here/mark"}
OWN_CALLBACK = "ptq_diffusion.command.sweep.ListFailures"


def logging(**parts):
    return {"version": 1, "root": {"level": "INFO"}, "disable_existing_loggers": False} | parts


def handler(**options):
    return logging(handlers={"one": options}, root={"handlers": ["one"]})


HIDDEN = {
    "a callback that touches": {"callbacks": {"one": TOUCH}},
    "a callback that copies": {"callbacks": {"one": COPY}},
    "a callback that spawns": {"callbacks": {"one": SPAWN}},
    "a callback that loads a pickle": {"callbacks": {"one": PICKLE}},
    "a callback of ours with another inside": {"callbacks": {"one": {"_target_": OWN_CALLBACK, "x": TOUCH}}},
    "an own callback with another inside": {"callbacks": {"failures": {"x": TOUCH}}},
    "a callback that replaces ours": {"callbacks": {"failures": TOUCH}},
    "a callback under the name of ours": {"callbacks": {"failures": TOUCH, "failures._target_": OWN_CALLBACK}},
    "a callback that stands elsewhere": {"callbacks": {"one": "${evil}"}},
    "callbacks that stand elsewhere": {"callbacks": "${evils}"},
    "a launcher": {"launcher": TOUCH},
    "a launcher's option": {"launcher": {"x": TOUCH}},
    "a launcher's option that stands elsewhere": {"launcher": {"x": "${evil}"}},
    "a launcher's option behind another": {"launcher": {"x": "${hydra.help.x}"}, "help": {"x": "${evil}"}},
    "a launcher's list behind another option": {
        "launcher": {"setup": "${hydra.verbose}"},
        "verbose": ["touch @here/mark"],
    },
    "a launcher's word behind another option": {"launcher": {"partition": "a${hydra.help.footer}"}},
    "a sweep behind another option": {
        "sweeper": {"params": "${hydra.job_logging.more}"},
        "job_logging": {"more": {"+hydra.job.env_set.X": "1"}},
    },
    "a sweeper": {"sweeper": TOUCH},
    "a sweeper's list": {"sweeper": {"x": [[TOUCH]]}},
    "a sweep over what stands elsewhere": {"sweeper": {"params": {"images": "${evil}"}}},
    "a node that is made of text": {"sweeper": {"params": {"images": "${oc.create:{_target_: pathlib.Path}}"}}},
    "a factory of a handler": {"job_logging": handler(**{"()": "pathlib.Path.touch", "self": "@here/mark"})},
    "a handler that writes": {"job_logging": handler(**WRITER)},
    "a handler that writes in turn": {
        "job_logging": handler(**WRITER | {"class": "logging.handlers.RotatingFileHandler"})
    },
    "a handler that writes for Hydra": {"hydra_logging": handler(**WRITER)},
    "a handler's class that stands elsewhere": {
        "job_logging": handler(**WRITER | {"class": "${oc.select:nothing,logging.FileHandler}"})
    },
    "a factory of a formatter": {"job_logging": logging(formatters={"one": {"()": "pathlib.Path.touch"}})},
    "a factory of a filter": {"hydra_logging": logging(filters={"one": {"()": "pathlib.Path.cwd"}})},
    "a stream that is imported": {
        "job_logging": handler(**{"class": "logging.StreamHandler", "stream": "ext://marking.stream"})
    },
    "a level that is imported": {"hydra_logging": logging(root={"level": "ext://marking.level"})},
    "a value of the configuration": {"hydra_logging": logging(root={"level": "cfg://version"})},
    "a help that is built": {"help": {"template": TOUCH}},
    "an environment": {"job": {"env_set": {"PYTHONPATH": "@here"}}},
    "threads that are no number": {"job": {"env_set": {"OMP_NUM_THREADS": "a b"}}},
    "an environment that is copied": {"job": {"env_copy": ["HOME"]}},
    "a folder of runs": {"run": {"dir": "@here/mark"}},
    "a folder of runs above": {"run": {"dir": "${outputs}/../mark"}},
    "a folder of sweeps": {"sweep": {"dir": "@here/mark"}},
    "a folder of jobs": {"sweep": {"subdir": "@here/mark"}},
    "a folder of configurations": {"output_subdir": "@here/mark"},
    "another working folder": {"job": {"chdir": True}},
    "another name of a job": {"job": {"name": "../mark"}},
    "words that were not written": {"overrides": {"hydra": ["+hydra.job.env_set.X=1"]}},
    "a task that was not written": {"overrides": {"task": ["images=3"]}},
    "commands of a batch": {"launcher": {"setup": ["touch @here/mark"]}},
    "options of a batch": {"launcher": {"additional_parameters": {"wrap": "touch @here/mark"}}},
    "a comment of two lines": {"launcher": {"comment": "x\ntouch @here/mark"}},
    "a folder of the launcher": {"launcher": {"submitit_folder": "@here/mark"}},
    "a sweep over Hydra's options": {"sweeper": {"params": {"+hydra.job.env_set.X": 1}}},
    "a sweep over Hydra's groups": {"sweeper": {"params": {"hydra/job_logging": "file"}}},
    "a class among the swept": {"sweeper": {"params": {"images": {"_target_": "pathlib.Path.cwd"}}}},
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with a package that leaves a mark when it is imported, and no run that computes."""
    package = tmp_path / "marking"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w'); level = 10\n")
    (tmp_path / "source").write_text("mark")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(Store, "obtain", lambda *arguments, **options: tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def base():
    """The node `hydra` of the default experiment, and of a sweep on Slurm, without their types."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose("config", return_hydra_config=True).hydra
    return OmegaConf.to_container(node, resolve=False)


def written(here, node, name="evil/one.yaml"):
    folder = here / "conf"
    text = yaml.safe_dump({"hydra": node}).replace("@here", str(here))
    text += f"evil: {{_target_: pathlib.Path.touch, self: {here / MARK}}}\n"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"# @package _global_\n{text}")
    return folder


def ended(*words):
    """What the command ends with; the package's own conf has no group `evil`, --config-dir brings it."""
    sys.argv = ["ptq-diffusion", *map(str, words)]
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def assert_refused(message, here):
    assert_clear(message, r"expected (hydra\.|folders of configurations)")
    assert not (here / MARK).exists() and "marking" not in sys.modules
    assert not (here / "outputs" / "runs").exists()


@pytest.mark.parametrize("node", HIDDEN.values(), ids=HIDDEN)
def test_what_a_configuration_hides_is_refused(node, base):
    plain = OmegaConf.create({"hydra": base, "outputs": "outputs"})
    require_harmless(plain.hydra)
    require_shown(plain.hydra, [])
    changed = OmegaConf.merge(plain, {"hydra": node, "evil": TOUCH, "evils": {"one": TOUCH}})
    with pytest.raises(ValueError, match=r"^expected hydra\.[^\n]* got .*; remove it") as refused:
        require_harmless(changed.hydra)
        require_shown(changed.hydra, [])
    assert len(str(refused.value)) < 600


BEFORE = {
    "a run": ([], {"callbacks": {"one": TOUCH}}),
    "a sweep": (["-m"], {"callbacks": {"one": TOUCH}}),
    "a help": (["--help"], {"hydra_logging": handler(**WRITER)}),
    "a look": (["--cfg", "job"], {"callbacks": {"one": TOUCH}}),
    "a batch": (["-m", "hydra/launcher=submitit_slurm"], {"launcher": {"setup": ["touch @here/mark"]}}),
}


@pytest.mark.parametrize(("flags", "node"), BEFORE.values(), ids=BEFORE)
def test_it_is_refused_before_hydra_builds_anything(flags, node, here):
    if "hydra/launcher=submitit_slurm" in flags:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install '.[slurm]'")
    assert_refused(ended("--config-dir", written(here, node), *flags, "+evil=one"), here)


def test_the_jobs_of_a_sweep_are_composed_under_guard_too(here, tiny, capfd):
    folder = written(here, {"job_logging": handler(**WRITER)})
    written(here, {}, name="evil/two.yaml")
    assert_refused(ended("-m", *tiny, "+evil=one,two", "--config-dir", folder), here)


def test_a_primary_configuration_imports_no_package(here):
    assert_refused(ended("--config-path", written(here, {"searchpath": ["pkg://marking"]}, "config.yaml")), here)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config-path", "pkg://marking"], "folders of configurations"),
        (["--config-dir", "pkg://marking"], "folders|not found"),
        (["hydra.searchpath=[pkg://marking]"], "folders of configurations"),
        (["+hydra.callbacks.one._target_=pathlib.Path.cwd"], "a configuration runs nothing"),
        (["hydra.launcher._target_=pathlib.Path.cwd"], "BasicLauncher"),
        (["hydra/job_logging=default"], "log.txt"),
    ],
    ids=str,
)
def test_words_import_and_build_nothing_else_either(words, expected, here):
    message = ended(*words)
    assert re.search(expected, message) and message.startswith("error: ")
    assert "marking" not in sys.modules


def test_what_the_command_line_says_itself_is_done(here, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr("ptq_diffusion.command.experiment.run", lambda cfg: seen.append(os.environ.get("SEEN")))
    words = ["+hydra.job.env_set.SEEN=yes", f"hydra.run.dir={here / 'elsewhere'}", "hydra.output_subdir=kept"]
    sys.argv = ["ptq-diffusion", *tiny, *words]
    main()
    assert seen == ["yes"] and (here / "elsewhere" / "kept" / "hydra.yaml").is_file()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("model.path=glob(*)", "there are none of model.path, whose values"),
        ("sampler=glob(x*)", "there are ddim, ddpm"),
    ],
)
def test_a_sweep_over_nothing_is_no_success(word, expected, here):
    assert expected in ended("-m", word)


@pytest.mark.parametrize("flag", ["--hydra-help", "--help", "--info=config"])
def test_helps_are_not_refused(flag, here, capsys):
    sys.argv = ["ptq-diffusion", flag]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code
    assert len(capsys.readouterr().out) > 100
