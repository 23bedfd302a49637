"""One process at a time writes into the folder of a run."""

import threading

import pytest
from filelock import FileLock, Timeout

from ptq_diffusion.engine.run_files import LOCK
from ptq_diffusion.engine.run_folder import locked_run_folder, run_path
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.trajectories import Trajectories
from tests.experiments import composed


@pytest.fixture
def run_of(tiny, tmp_path):
    return Store(tmp_path / "store", Workshop(Runtime("cpu", False))), Trajectories, composed(*tiny)


def test_a_second_process_waits_and_says_so(run_of, capsys):
    entered, leave, order = threading.Event(), threading.Event(), []

    def other():
        with locked_run_folder(*run_of):
            order.append("other begins")
            entered.set()
            leave.wait()
            order.append("other ends")

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with pytest.raises(Timeout):
        FileLock(run_path(*run_of) / LOCK).acquire(timeout=0)
    say = run_of[0].runtime.say
    run_of[0].runtime.say = lambda text: say(text) or leave.set()
    with locked_run_folder(*run_of) as folder:
        order.append("begins")
    thread.join()
    assert order == ["other begins", "other ends", "begins"]
    assert f"waiting for another process that runs the same in {folder}" in capsys.readouterr().out


def test_a_run_holds_its_folder_and_removes_what_a_killed_one_began_to_write(make, tmp_path, monkeypatch):
    make("goal=trajectories")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    (folder / "report.json.12345.tmp").write_text("half of it")
    obtain, held = Store.obtain, []

    def noted(*arguments, **options):
        with pytest.raises(Timeout):
            FileLock(folder / LOCK).acquire(timeout=0)
        held.append(sorted(path.name for path in folder.iterdir()))
        return obtain(*arguments, **options)

    monkeypatch.setattr(Store, "obtain", noted)
    make("goal=trajectories")
    assert held == [["artefacts.json", "config.yaml", "log.txt", LOCK]]
    FileLock(folder / LOCK).acquire(timeout=0)


def test_a_run_that_fails_leaves_its_folder_to_the_next(run_of):
    with pytest.raises(KeyboardInterrupt), locked_run_folder(*run_of):
        raise KeyboardInterrupt
    with locked_run_folder(*run_of) as folder:
        assert folder.is_dir()


def test_the_configuration_of_a_run_makes_it_again_in_the_same_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = command("goal=plan")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    again = command(f"--config-path={folder}", tiny=())
    assert first.strip().splitlines()[-1] == again.strip().splitlines()[-1]
    assert [*(tmp_path / "outputs" / "runs").iterdir()] == [folder]
    assert "reused" in again and not (tmp_path / "multirun").exists()
