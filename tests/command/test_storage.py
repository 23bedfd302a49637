"""`ptq-diffusion store` tells what a store holds and removes what no run needs, never what a process makes or uses."""

import csv
import io
import shutil
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from ptq_diffusion.engine.inventory import remove, stored
from tests.job import assert_clear, complete, started

HOLDER = """
import sys, time
from filelock import FileLock
locks = [FileLock(path) for path in sys.argv[1:]]
for lock in locks:
    lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
GONE = "0123456789abcdef"
"""The signature of an artefact that no run needs."""


@pytest.fixture
def outputs(finished, tmp_path):
    return shutil.copytree(finished[1], tmp_path / "outputs")


@pytest.fixture
def listed(outputs, capsys):
    """The lines of `store --csv`, by stage and signature."""

    def read(*words):
        capsys.readouterr()
        started("store", *words, "--outputs", outputs, "--csv")
        rows = csv.DictReader(capsys.readouterr().out.splitlines())
        return {(row["stage"], row["signature"]): row for row in rows}

    return read


@pytest.fixture
def held():
    """A process that holds locks until it is killed."""
    processes = []

    def hold(*locks):
        command = [sys.executable, "-c", HOLDER, *map(str, locks)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield hold
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def planted(outputs, *ends):
    """An artefact that no run needs, by the endings of what lies there."""
    for end in ends:
        place = outputs / "store" / "fit" / f"{GONE}{end}"
        if end in ("", ".partial", ".replaced"):
            place.mkdir()
            (place / "correction.json").write_text("{}" * 50)
        else:
            place.write_text("1.0\n")
    return outputs / "store" / "fit" / GONE


def beside(folder):
    return sorted(path.name for path in folder.parent.glob(f"{folder.name}*"))


def the_run(outputs):
    (run,) = (outputs / "runs").iterdir()
    return run


def test_every_artefact_is_listed_with_its_bytes_and_its_run(outputs, listed):
    rows = listed()
    folders = {path for path in (outputs / "store").glob("*/*") if path.is_dir()}
    assert {outputs / "store" / stage / signature for stage, signature in rows} == folders
    for (stage, signature), row in rows.items():
        sizes = [
            path.stat().st_size for path in (outputs / "store" / stage).glob(f"{signature}*/**/*") if path.is_file()
        ]
        seconds = (outputs / "store" / stage / f"{signature}.seconds").stat().st_size
        assert int(row["bytes"]) == sum(sizes) + seconds
        assert row["state"] == "complete" and row["needed_by"] == row["made_by"] == str(the_run(outputs))


def test_the_list_fits_a_screen_and_stars_the_maker(outputs, capsys):
    started("store", "--outputs", outputs)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "calibrate" in said and "*" in said


def test_what_no_run_needs_is_removed_and_all_else_stays(outputs, listed, capsys):
    before = complete(outputs)
    planted(outputs, "", ".seconds", ".lock")
    started("store", "prune", "--outputs", outputs, "--yes")
    assert "removed 1 artefacts" in capsys.readouterr().out
    assert complete(outputs) == before
    assert beside(outputs / "store" / "fit" / GONE) == [] and not list((outputs / "runs").rglob("run.lock"))
    started("store", "prune", "--outputs", outputs, "--yes")
    assert "nothing to remove" in capsys.readouterr().out


def test_the_artefacts_of_other_runs_than_those_named_are_removed(outputs, listed, tmp_path):
    """A run is told by its list, which it writes as it begins, or by its log where it is older than the list."""
    run = the_run(outputs)
    other = shutil.copytree(run, tmp_path / "elsewhere" / "other")
    for name in ("artefacts.json", "log.txt"):
        assert all(row["needed_by"] == str(other) for row in listed(tmp_path / "elsewhere").values())
        (other / name).unlink()
    assert all(row["needed_by"] == "" for row in listed(tmp_path / "elsewhere").values())
    started("store", "prune", tmp_path / "elsewhere", "--outputs", outputs, "--yes")
    assert complete(outputs) == {} and [path.name for path in (outputs / "store").iterdir()] == ["format"]


@pytest.mark.parametrize("ends", [("", ".partial"), (".partial",), (".partial", ".replaced")], ids=str)
def test_what_a_process_is_making_stays_until_the_process_is_gone(outputs, listed, held, ends, capsys):
    """Also where the run that it belongs to is told by nothing: the lock alone counts."""
    folder = planted(outputs, *ends)
    process = held(folder.with_suffix(".lock"))
    assert listed()["fit", GONE]["state"] == "in the making"
    started("store", "prune", "--outputs", outputs, "--yes", "--unfinished")
    assert {f"{GONE}{end}" for end in ends} <= set(beside(folder))
    process.kill()
    process.wait()
    assert listed()["fit", GONE]["state"] == ("complete" if "" in ends else "begun")
    started("store", "prune", "--outputs", outputs, "--yes")
    assert beside(folder) == []


def test_what_a_run_had_begun_is_kept_for_it_unless_it_is_said(outputs, capsys):
    fit = next(path for path in (outputs / "store" / "fit").iterdir() if path.is_dir())
    fit.rename(fit.with_suffix(".partial"))
    started("store", "prune", "--outputs", outputs, "--yes")
    assert fit.with_suffix(".partial").is_dir()
    started("store", "prune", "--outputs", outputs, "--yes", "--unfinished")
    assert "begun, its process is gone" in capsys.readouterr().out
    assert beside(fit) == []


def test_what_a_live_run_needs_stays_whatever_runs_are_named(outputs, held, tmp_path):
    other = tmp_path / "elsewhere" / "other"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("")
    before = complete(outputs)
    process = held(the_run(outputs) / "run.lock")
    started("store", "prune", tmp_path / "elsewhere", "--outputs", outputs, "--yes")
    assert complete(outputs) == before and (the_run(outputs) / "run.lock").is_file()
    process.kill()
    process.wait()
    started("store", "prune", tmp_path / "elsewhere", "--outputs", outputs, "--yes")
    assert complete(outputs) == {} and not (the_run(outputs) / "run.lock").exists()


def test_a_run_that_begins_after_the_question_keeps_what_it_needs(outputs, held):
    artefacts = stored(outputs / "store")
    held(the_run(outputs) / "run.lock")
    assert not any(remove(one, [outputs / "runs"]) for one in artefacts)


def test_a_process_that_waits_for_a_lock_that_is_removed_takes_a_new_one(tmp_path):
    """Otherwise it would hold a file that nobody sees, and a third would make the same artefact beside it."""
    path, second = tmp_path / "lock", FileLock(tmp_path / "lock")
    first = FileLock(path)
    first.acquire()
    thread = threading.Thread(target=second.acquire, kwargs={"poll_interval": 0.01})
    thread.start()
    path.unlink()
    first.release()
    thread.join()
    assert path.is_file()
    second.release()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["store", "--outputs", "/nowhere"], "--outputs FOLDER"),
        (["store", "prune", "/nowhere"], "give folders of runs"),
        (["store", "prune"], "--yes"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_and_nothing_is_removed(words, remedy, outputs, monkeypatch):
    planted(outputs, "")
    monkeypatch.chdir(outputs.parent)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    before = complete(outputs)
    with pytest.raises(SystemExit) as stop:
        started(*words)
    assert_clear(stop.value.code, remedy)
    assert complete(outputs) == before


@pytest.mark.parametrize("words", [["store"], ["store", "prune", "--yes"], ["goal=trajectories"]], ids=str)
def test_a_store_of_another_format_is_refused_and_left_as_it_is(words, outputs, monkeypatch):
    (outputs / "store" / "format").write_text("2\n")
    before = complete(outputs)
    monkeypatch.chdir(outputs.parent)
    with pytest.raises(SystemExit) as stop:
        started(*words)
    assert_clear(
        stop.value.code, "store of format 1 at outputs/store, got one of format '2'.*another folder of outputs"
    )
    assert complete(outputs) == before


def test_a_store_without_a_format_is_read(outputs, listed):
    (outputs / "store" / "format").unlink()
    assert {row["state"] for row in listed().values()} == {"complete"}


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_the_user_is_asked_first(answer, gone, outputs, monkeypatch):
    folder = planted(outputs, "")
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    started("store", "prune", "--outputs", outputs)
    assert folder.exists() != gone


class Terminal(io.StringIO):
    """A user who types a text."""

    def isatty(self):
        return True


@pytest.mark.parametrize("words", [["--yes"], ["--unfinished"], ["prune", "--csv"]], ids=" ".join)
def test_an_option_of_the_other_form_is_refused(words, tmp_path):
    with pytest.raises(SystemExit) as ended:
        started("store", *words, "--outputs", tmp_path)
    assert_clear(ended.value.code, f"no {words[-1]} here, .* it is an option of ptq-diffusion store")
