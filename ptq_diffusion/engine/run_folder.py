"""The folder of a run: its name, its lock, and what it holds from the start."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.artefact.files import write_json, write_text
from ptq_diffusion.engine.run_files import ARTEFACTS, CONFIG, FAILURE, LOCK
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.store import Store


def run_path(store: Store, stage: type[Stage], cfg: DictConfig) -> Path:
    """The path of a run's folder, outputs/runs/<name>-<signature of the stage>."""
    return Path(cfg.outputs) / "runs" / f"{cfg.name}-{store.signature(stage, cfg)}"


def run_folder(store: Store, stage: type[Stage], cfg: DictConfig) -> Path:
    """The folder of a run, made now: the resolved configuration, the list of its artefacts, no earlier failure."""
    folder = run_path(store, stage, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    write_text(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    write_json(folder / ARTEFACTS, list(store.artefacts(stage, cfg)))
    return folder


@contextmanager
def locked_run_folder(store: Store, stage: type[Stage], cfg: DictConfig) -> Iterator[Path]:
    """The folder of a run, in which no other process writes within the context; another waits until it ends.

    The files that a killed process had begun to write, `NAME.PID.tmp`, are removed first.
    """
    folder = run_path(store, stage, cfg)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        store.runtime.say(f"waiting for another process that runs the same in {folder}")
        lock.acquire()
    try:
        for unfinished in folder.glob("*.*.tmp"):
            unfinished.unlink()
        yield run_folder(store, stage, cfg)
    finally:
        lock.release()
