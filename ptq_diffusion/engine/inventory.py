"""The contents of a store and the needs of runs: artefacts, those in the making, and what killed processes left."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from filelock import FileLock, Timeout

from ptq_diffusion.artefact.files import MANIFEST, REPLACED, read_json
from ptq_diffusion.engine.agenda import Key
from ptq_diffusion.engine.run_files import ARTEFACTS, CONFIG, LOCK, LOG
from ptq_diffusion.engine.store import GOING_ON, LOCKED, MAKING, PARTIAL, REUSED, SECONDS, require_format

SIGNATURE = re.compile(r"[0-9a-f]{16}")
MADE = re.compile(rf"(?:{MAKING}|{GOING_ON}) ([0-9a-f]{{16}})$", re.MULTILINE)
"""The end of a log line about an artefact that the run made; the group is its signature."""
USED = re.compile(rf"(?:{MAKING}|{GOING_ON}|{REUSED}) ([0-9a-f]{{16}})$", re.MULTILINE)
"""The same for an artefact that the run made or reused."""


class State(Enum):
    """The state of an artefact."""

    COMPLETE = "complete"
    MAKING = "in the making"
    BEGUN = "begun"
    """By a process that is gone; the same command goes on from it."""
    LEFT = "left over"
    """A lock, a time or a folder that was being removed, without an artefact."""


@dataclass(frozen=True)
class Stored:
    """An artefact with all that lies beside it.

    Args:
        folder: its folder, which need not be there yet.
        state: how far it is.
        size: bytes of all files.
        since: when it was finished or last touched, seconds since 1970.
    """

    folder: Path
    state: State
    size: int
    since: float

    @property
    def key(self) -> Key:
        """Its stage and its signature."""
        return self.folder.parent.name, self.folder.name


@dataclass(frozen=True)
class RunNeeds:
    """A run and the artefacts that it is made of.

    Args:
        folder: of the run.
        made: signatures of those that it made itself, as its log says.
        used: signatures of all.
        live: whether a process holds it.
    """

    folder: Path
    made: frozenset[str]
    used: frozenset[str]
    live: bool


def stored(root: Path) -> list[Stored]:
    """The artefacts of a store by stage and age, the oldest first, what killed processes left among them.

    Raises:
        FileNotFoundError: there is no such store.
        ValueError: it is of another format.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"expected a store at {root}, there is no such folder; run an experiment first, or give --outputs FOLDER"
        )
    require_format(root)
    places = {path.with_suffix("") for stage in root.iterdir() if stage.is_dir() for path in stage.iterdir()}
    artefacts = (_stored(place) for place in places if SIGNATURE.fullmatch(place.name))
    return sorted(artefacts, key=lambda one: (one.key[0], one.since, one.key[1]))


def runs_below(folders: Iterable[Path]) -> list[RunNeeds]:
    """The runs below some folders, each once."""
    places = {path.parent.absolute() for folder in folders for path in folder.rglob(CONFIG) if _is_run(path.parent)}
    return [_needs(place) for place in sorted(places)]


def users(artefacts: Iterable[Stored], runs: Sequence[RunNeeds]) -> Mapping[Key, Sequence[RunNeeds]]:
    """The runs that need every artefact."""
    return {one.key: [run for run in runs if one.key[1] in run.used] for one in artefacts}


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock; a file that nobody holds says nothing."""
    if not lock.is_file():
        return False
    try:
        with FileLock(lock).acquire(timeout=0):
            return False
    except Timeout:
        return True


def remove(artefact: Stored, runs: Iterable[Path]) -> bool:
    """Remove an artefact with all that lies beside it, unless somebody makes it or a live run needs it by now.

    Args:
        artefact: which.
        runs: folders of runs that may have begun since they were last looked at.
    """
    with _held(artefact.folder.with_suffix(LOCKED)) as held:
        if not held or any(run.live and artefact.folder.name in run.used for run in runs_below(runs)):
            return False
        replaced = artefact.folder.with_suffix(REPLACED)
        shutil.rmtree(replaced, ignore_errors=True)
        if artefact.folder.is_dir():
            # Out of the way at once: a process that is killed here leaves no half of an artefact under its name.
            os.replace(artefact.folder, replaced)
        for place in (replaced, artefact.folder.with_suffix(PARTIAL)):
            shutil.rmtree(place, ignore_errors=True)
        artefact.folder.with_suffix(SECONDS).unlink(missing_ok=True)
        # While it is held: whoever waits for it sees that the file is gone, and takes a new one.
        artefact.folder.with_suffix(LOCKED).unlink(missing_ok=True)
        # The stage's folder goes with its last artefact.
        with suppress(OSError):
            artefact.folder.parent.rmdir()
        return True


def remove_lock(lock: Path) -> bool:
    """Remove a lock that nobody holds."""
    with _held(lock) as held:
        if held:
            lock.unlink(missing_ok=True)
        return held


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Whether the lock could be taken; it is held within this context."""
    file = FileLock(lock)
    try:
        file.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        file.release()


def _stored(folder: Path) -> Stored:
    partial = folder.with_suffix(PARTIAL)
    if is_held(folder.with_suffix(LOCKED)):
        state = State.MAKING
    elif folder.is_dir():
        state = State.COMPLETE
    else:
        state = State.BEGUN if partial.is_dir() else State.LEFT
    manifest = folder / MANIFEST
    files = [file for place in _places(folder) for file in ([place, *place.rglob("*")] if place.is_dir() else [place])]
    sizes = {file: file.stat() for file in files if file.exists()}
    size = sum(stat.st_size for file, stat in sizes.items() if file.is_file())
    since = sizes[manifest].st_mtime if manifest in sizes else max((s.st_mtime for s in sizes.values()), default=0.0)
    return Stored(folder, state, size, since)


def _places(folder: Path) -> list[Path]:
    """The folder of an artefact and all that may lie beside it, the lock last."""
    return [folder, *(folder.with_suffix(end) for end in (PARTIAL, REPLACED, SECONDS, LOCKED))]


def _is_run(folder: Path) -> bool:
    """Whether a folder with a configuration is a run's, not an artefact's, which has a manifest."""
    return not (folder / MANIFEST).is_file() and not folder.name.endswith(PARTIAL)


def _needs(folder: Path) -> RunNeeds:
    log = (folder / LOG).read_text() if (folder / LOG).is_file() else ""
    listed = read_json(folder / ARTEFACTS) if (folder / ARTEFACTS).is_file() else []
    used = {*USED.findall(log), *(signature for _, signature in listed)}
    return RunNeeds(folder, frozenset(MADE.findall(log)), frozenset(used), is_held(folder / LOCK))
