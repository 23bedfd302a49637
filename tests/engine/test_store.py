"""The store: a stage sees what it declares, and a signature is a function of what made the artefact."""

import errno
import itertools
import os

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch.multiprocessing.spawn import ProcessException

from ptq_diffusion.artefact import files
from ptq_diffusion.engine import store as store_module
from ptq_diffusion.engine.runtime import TF32, Runtime
from ptq_diffusion.engine.selection import select
from ptq_diffusion.engine.stage import Need, Stage
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop


class Digits(Stage):
    """Writes its number."""

    name = "digits"
    version = 1
    uses = ("a.number",)

    def make(self, cfg, inputs, out, runtime):
        (out / "number").write_text(str(cfg.a.number))


class Doubled(Stage):
    """Needs digits."""

    name = "doubled"
    version = 1
    needs = (Digits,)
    uses = ("factor",)

    def make(self, cfg, inputs, out, runtime):
        if "a" in cfg:
            raise AssertionError("a stage sees what it did not declare")
        (out / "number").write_text(str(cfg.factor * int((inputs["digits"] / "number").read_text())))


class Failing(Stage):
    """Fails half-way, as an interrupted stage or a full disk does."""

    name = "failing"
    version = 1
    uses = ()
    scratch = ("kept",)
    error: BaseException | None = None

    def make(self, cfg, inputs, out, runtime):
        (out / "kept").mkdir(exist_ok=True)
        done = list((out / "kept").iterdir())
        (out / "kept" / str(len(done))).write_text("")
        (out / "left.tmp").write_text("")
        (out / "below").mkdir(exist_ok=True)
        (out / "below" / "left.tmp").write_text("")
        if self.error is not None:
            raise self.error
        (out / "number").write_text(str(len(done)))


CFG = OmegaConf.create({"a": {"number": 4, "other": 1}, "factor": 2, "seeds": [1]})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, Workshop(Runtime("cpu", False)))


def changed(key, value):
    cfg = CFG.copy()
    OmegaConf.update(cfg, key, value)
    return cfg


def test_an_artefact_is_made_of_its_needs(store):
    assert (store.obtain(Doubled, CFG) / "number").read_text() == "8"


class Sum(Stage):
    """Needs two numbers of one kind, told apart by their roles."""

    name = "sum"
    version = 1
    needs = (Digits,)
    uses = ()

    def inputs(self, cfg):
        return {name: Need(Digits, changed("a.number", int(name))) for name in ("3", "4")}

    def make(self, cfg, inputs, out, runtime):
        (out / "number").write_text(str(sum(int((folder / "number").read_text()) for folder in inputs.values())))


def test_the_lock_of_an_artefact_goes_when_it_is_whole(store, tmp_path, monkeypatch):
    monkeypatch.setattr(Failing, "error", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store.obtain(Failing, CFG)
    assert len(list(tmp_path.rglob("*.lock"))) == 1, "what is unfinished keeps it"
    monkeypatch.setattr(Failing, "error", None)
    store.obtain(Failing, CFG)
    Store(tmp_path, Workshop(Runtime("cpu", False))).obtain(Doubled, CFG)
    Store(tmp_path, Workshop(Runtime("cpu", False))).obtain(Doubled, CFG)
    assert not list(tmp_path.rglob("*.lock"))


def test_a_user_reads_which_of_several_artefacts_of_a_stage_is_made(store, capsys):
    assert (store.obtain(Sum, CFG) / "number").read_text() == "7"
    said = [line.rpartition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["1 of 3 digits of 3: making", "2 of 3 digits of 4: making", "3 of 3 sum: making"]


def test_a_signature_follows_what_is_declared_and_nothing_else(store):
    own = store.signature(Doubled, CFG)
    assert store.signature(Doubled, changed("a.other", 9)) == own
    assert store.signature(Doubled, changed("factor", 3)) != own
    assert store.signature(Doubled, changed("a.number", 5)) != own, "a need's signature is part of its own"
    assert store.signature(Digits, changed("factor", 3)) == store.signature(Digits, CFG)


def test_a_number_is_one_value_however_it_is_written(store):
    own = store.signature(Doubled, CFG)
    assert store.signature(Doubled, changed("factor", 2.0)) == own != store.signature(Doubled, changed("factor", 2.5))
    assert store.signature(Digits, changed("a.number", [4.0, {"b": -0.0}])) == store.signature(
        Digits, changed("a.number", [4, {"b": 0}])
    )
    assert store.signature(Digits, changed("a.number", 1)) != store.signature(Digits, changed("a.number", True))


@pytest.mark.parametrize("library", ["torch", "diffusers"])
def test_a_signature_follows_the_libraries_that_make_the_numbers(store, monkeypatch, library):
    own = store.signature(Digits, CFG)
    monkeypatch.setattr(f"{library}.__version__", "another")
    assert Store(store.root, store.shop).signature(Digits, CFG) != own


@pytest.mark.parametrize(
    ("change", "back"),
    [
        (lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
        (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.set_float32_matmul_precision("high"), lambda: torch.set_float32_matmul_precision("highest")),
    ],
    ids=["threads", "dtype", "tf32"],
)
def test_a_signature_follows_the_settings_that_change_last_bits(store, change, back):
    own = store.signature(Digits, CFG)
    change()
    try:
        assert Store(store.root, store.shop).signature(Digits, CFG) != own
    finally:
        back()
    assert Store(store.root, store.shop).signature(Digits, CFG) == own


def test_a_signature_follows_the_kind_of_device_and_what_its_libraries_are_told(store, monkeypatch):
    signatures = []
    for device, override in itertools.product(("cpu", "cuda"), ("0", "1")):
        monkeypatch.setattr(Runtime, "device_type", device)
        monkeypatch.setenv(TF32, override)
        signatures.append(Store(store.root, Workshop(Runtime("cpu", False))).signature(Digits, CFG))
    assert signatures[0] == signatures[1] and len({*signatures}) == 3  # The CPU does not read it.


def test_two_processes_that_write_one_file_leave_one_of_the_two(tmp_path, monkeypatch):
    """The other writes all of it while the first has written beside it."""
    path, sync = tmp_path / "file", files._sync

    def other(written):
        monkeypatch.setattr(files, "_sync", sync)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        files.write_text(path, "other")
        assert path.read_text() == "other"
        sync(written)

    monkeypatch.setattr(files, "_sync", other)
    files.write_text(path, "first")
    assert path.read_text() == "first" and names(tmp_path) == ["file"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_stage_leaves_no_artefact_and_what_it_finished(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Failing, "error", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store.obtain(Failing, CFG)
    assert [path.suffix for path in tmp_path.glob("failing/*") if path.is_dir()] == [".partial"]
    monkeypatch.setattr(Failing, "error", None)
    made = store.obtain(Failing, CFG)
    assert (made / "number").read_text() == "1", "the second attempt finds what the first left"
    said = [line.partition(": ")[2].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["making", "going"]
    assert names(made) == ["below", "config.yaml", "files.json", "number"], "no scratch stays"
    assert not list(made.rglob("*.tmp")), "neither do half-written files"


class Folder(Digits):
    """Leaves a folder that is named as half-written files are."""

    name = "folder"

    def make(self, cfg, inputs, out, runtime):
        (out / "kept.tmp").mkdir()
        (out / "kept.tmp" / "number").write_text("1")


def test_only_files_are_taken_for_half_written_ones(store):
    assert (store.obtain(Folder, CFG) / "kept.tmp" / "number").read_text() == "1"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
REFUSALS = {
    "full": FULL,
    "locked": OSError(errno.EROFS, os.strerror(errno.EROFS)),
    "full, says safetensors": SafetensorError(f"Error while serializing: I/O error: {FULL.strerror} (os error 28)"),
    "full, says another device": ProcessException(f"Process 1 terminated with the following error: {FULL}", 1, 2),
}


@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS)
def test_a_disk_that_takes_no_more_is_named_and_what_was_finished_stays(store, tmp_path, monkeypatch, error):
    monkeypatch.setattr(Failing, "error", error)
    with pytest.raises(OSError, match=f"write into {tmp_path / 'failing'}, got: .*outputs=FOLDER"):
        store.obtain(Failing, CFG)
    assert list(tmp_path.glob("failing/*.partial/kept/0"))


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"write into {tmp_path / 'file'}.*outputs=FOLDER"):
        Store(tmp_path / "file", Workshop(Runtime("cpu", False))).obtain(Digits, CFG)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "gone", "data"), PermissionError(13, "no", "/data")])
def test_an_error_that_is_not_about_the_store_passes_through(store, monkeypatch, error):
    monkeypatch.setattr(Failing, "error", error)
    with pytest.raises(type(error)) as caught:
        store.obtain(Failing, CFG)
    assert caught.value is error


@pytest.mark.parametrize("moment", ["write_manifest", "sync_folder", "replace"])
def test_a_kill_while_an_artefact_gets_its_name_loses_nothing(store, monkeypatch, moment):
    """After the manifest, what only served to go on may be gone, so that nothing must be made again."""
    done = getattr(files, moment)

    def killed(*arguments):
        if moment == "write_manifest":
            done(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            store.obtain(Failing, CFG)
    made = store.obtain(Failing, CFG)
    assert (made / "number").read_text() == "0", "it was made once"
    assert names(made) == ["below", "config.yaml", "files.json", "number"]


def test_a_forced_stage_is_made_again_and_loses_nothing_when_that_fails(tmp_path, monkeypatch):
    def obtained(*forced):
        return Store(tmp_path, Workshop(Runtime("cpu", False)), forced).obtain(Failing, CFG)

    first = obtained()
    before = first.stat().st_ino
    monkeypatch.setattr(Failing, "error", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        obtained("failing")
    assert obtained().stat().st_ino == before, "the artefact stays until the new one is whole"
    monkeypatch.setattr(Failing, "error", None)
    again = obtained("failing")
    assert again == first and again.stat().st_ino != before
    assert (again / "number").read_text() == "0", "it begins anew"
    assert [path.name for path in tmp_path.glob("failing/*") if path.is_dir()] == [first.name]


@pytest.mark.parametrize("damage", ["number", "config.yaml", "files.json"])
def test_a_damaged_artefact_is_named_and_not_used(store, tmp_path, damage):
    made = store.obtain(Doubled, CFG)
    (made / damage).unlink()
    if damage == "number":
        (made / damage).write_text("")
    with pytest.raises(ValueError, match=f"expected {made / damage} .*remove {made}, and the same command"):
        Store(tmp_path, Workshop(Runtime("cpu", False))).obtain(Doubled, CFG)


def test_selecting_a_missing_key_names_it():
    with pytest.raises(ValueError, match="nothing"):
        select(CFG, ("nothing",))
