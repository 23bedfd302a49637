"""What an installation holds: the code, every configuration and the bundled weights, and nothing that grows."""

import gzip
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from hatchling.build import build_sdist, build_wheel
from hydra.errors import MissingConfigException

from ptq_diffusion import __version__
from ptq_diffusion.command.refusal import refusal
from ptq_diffusion.main import CONF

ROOT = Path(__file__).parents[1]
EXTRA = re.compile(r"'\.\[([\w,]+)\]'")
LIMIT = 40_000_000  # bytes of a wheel with all bundled files, so that it stays small


def files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without what Python or an editor leaves there."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        out = tmp_path_factory.mktemp("wheel")
        yield out / build_wheel(str(out))


def test_the_wheel_holds_the_package_and_the_configurations(wheel: Path) -> None:
    package = {path.relative_to(ROOT).as_posix() for path in files(ROOT / "ptq_diffusion")}
    conf = {f"ptq_diffusion/{path.relative_to(ROOT).as_posix()}" for path in files(ROOT / "conf")}
    assert "ptq_diffusion/conf/config.yaml" in conf
    assert members(wheel) == package | conf


def test_the_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed in no time: the members are looked at, and not the sizes."""
    monkeypatch.setattr(zipfile, "ZIP_DEFLATED", zipfile.ZIP_STORED)
    monkeypatch.chdir(ROOT)
    with monkeypatch.context() as patch:
        patch.setattr(gzip, "GzipFile", partial(gzip.GzipFile, compresslevel=0))
        sdist = tmp_path / build_sdist(str(tmp_path))
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / sdist.name.removesuffix(".tar.gz"))
    assert members(tmp_path / build_wheel(str(tmp_path))) == members(wheel)


def test_the_wheel_declares_the_command_the_version_and_the_licence(wheel: Path) -> None:
    info = f"ptq_diffusion-{__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert "ptq-diffusion = ptq_diffusion.main:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert f"\nVersion: {__version__}\n" in archive.read(f"{info}/METADATA").decode()
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert "\nClassifier: Typing :: Typed\n" in archive.read(f"{info}/METADATA").decode()
        assert "ptq_diffusion/py.typed" in archive.namelist()


def test_size_of_the_bundled_files(wheel: Path) -> None:
    sizes = {path: path.stat().st_size for top in ("ptq_diffusion", "conf") for path in files(ROOT / top)}
    largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
    assert wheel.stat().st_size < LIMIT, f"the largest are {[str(path.relative_to(ROOT)) for path in largest]}"


def test_a_checkout_finds_its_configurations() -> None:
    assert CONF.samefile(ROOT / "conf")
    assert (CONF / "config.yaml").is_file()


@pytest.mark.parametrize("installed", [True, False], ids=["wheel", "checkout"])
def test_the_command_explains_itself(installed: bool, wheel: Path, tmp_path: Path) -> None:
    home = tmp_path if installed else ROOT
    if installed:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(home)
    run = subprocess.run(
        [sys.executable, "-m", "ptq_diffusion", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "data: cifar10" in run.stdout


def test_extras_are_those_that_there_are_and_come_from_the_checkout() -> None:
    """A bare name on an index may be a stranger's."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = {path: path.read_text() for path in words()}
    assert len(texts) > 100
    for path, text in texts.items():
        for name in EXTRA.findall(text):
            assert set(name.split(",")) <= extras.keys(), f"{path} names an extra that there is not: {name}"
        assert not re.search(r"ptq[-_]diffusion\[[a-z]|pip install (-\S+ )*ptq[-_]diffusion", text), (
            f"{path}: a bare name"
        )
    named = {name for text in texts.values() for found in EXTRA.findall(text) for name in found.split(",")}
    assert named >= extras.keys() - {"docs", "test"}


def words() -> Iterator[Path]:
    """Every text that a user reads: documents, configurations, and messages in the code."""
    for top, endings in {"ptq_diffusion": (".py", ".md"), "conf": (".yaml",), "experiments": (".py", ".md")}.items():
        yield from (path for path in files(ROOT / top) if path.suffix in endings)
    yield from (ROOT / "docs").rglob("*.md")
    yield from (ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile", "constraints.txt"))


def test_a_launcher_that_is_not_installed_names_its_extra() -> None:
    error = MissingConfigException("no such file", missing_cfg_file="hydra/launcher/joblib", options=["basic"])
    message = refusal(error, ["hydra/launcher=processes"], CONF)
    assert message is not None and "pip install '.[parallel]'" in message


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    required = {"cff-version", "message", "title", "authors", "version", "license"}
    assert required <= citation.keys()
    assert (citation["version"], citation["license"]) == (__version__, "Apache-2.0")
