"""The artefact store: every stage's result lies under the hash of all that made it."""

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.artefact.files import (
    MANIFEST,
    check_whole,
    replace,
    sync_folder,
    writable,
    write_manifest,
    write_text,
)
from ptq_diffusion.engine.agenda import Agenda, Key
from ptq_diffusion.engine.selection import select
from ptq_diffusion.engine.signature import Signatures
from ptq_diffusion.engine.stage import Need, Stage
from ptq_diffusion.engine.workshop import Workshop

PARTIAL, LOCKED = ".partial", ".lock"
"""The endings, beside an artefact, of the folder that it is made in and of the lock of the process that makes it."""
MAKING, GOING_ON, REUSED = "making", "going on with", "reused"
"""The words before an artefact's signature in a log, from which `engine.inventory` reads the needs of runs."""
SECONDS = ".seconds"
"""The ending of the file beside an artefact that says how long its last attempt took, which is no part of it."""
FORMAT_FILE, FORMAT = "format", "1"
"""The file at the top of a store and what it says, raised when artefacts lie otherwise there."""


class Store:
    """Artefacts of all stages below one folder, `<root>/<stage>/<signature>/`, complete or absent.

    A stage fills `<signature>.partial`, which any interruption leaves for the next attempt to go on from. When it holds
    everything, a manifest of its files is written, all of it is brought to the disk, and it gets its name. Parallel
    jobs may share a store: the first to need an artefact makes it under a file lock, which dies with its process.

    Args:
        root: the folder.
        shop: what stages build with, and how they run.
        forced: names of stages whose artefacts are made anew, each once by this store.
        effort: about how much work an artefact is, in any unit, from which the time left is told.

    Raises:
        ValueError: the folder is a store of another format.

    Attributes:
        signatures: of the artefacts that were obtained, by stage.
        seconds: how long each of them took to make, its inputs apart, by stage and role; None where nothing tells.
    """

    def __init__(
        self,
        root: Path,
        shop: Workshop,
        forced: Collection[str] = (),
        effort: Callable[[Need], float] = lambda _: 0.0,
    ) -> None:
        require_format(root)
        self.root, self.shop, self.runtime, self.forced = root, shop, shop.runtime, forced
        self.signatures: dict[str, str] = {}
        self.seconds: dict[str, float | None] = {}
        self._signatures = Signatures(shop.runtime)
        self._obtained: dict[tuple[str, str], Path] = {}
        self._effort, self._agenda = effort, Agenda()

    def signature(self, stage: type[Stage], cfg: DictConfig) -> str:
        """The signature of the stage's artefact, see `Signatures`."""
        return self._signatures.of(stage, cfg)

    def obtain(self, stage: type[Stage], cfg: DictConfig, role: str = "") -> Path:
        """The folder of the stage's artefact, made now if the store lacks it.

        Args:
            stage: which makes it.
            cfg: the whole configuration.
            role: what it is to be called beside its stage, such as the candidate that a fit is of.

        Raises:
            ValueError: a file of the artefact is missing or has another size than when it was made.
            OSError: the store's disk is full or cannot be written; what was finished is kept.
        """
        signature, cfg = self.signature(stage, cfg), stage.made_of(cfg)
        if (stage.name, signature) not in self._obtained:
            if not self._agenda.holds(stage.name, signature):
                self.expect(stage, cfg)
            inputs = {name: self._input(name, need) for name, need in stage().inputs(cfg).items()}
            title = f"{stage.name} of {role}" if role else stage.name
            self._obtained[stage.name, signature] = self._made(stage, signature, cfg, inputs, title)
            self.signatures[stage.name] = signature
        return self._obtained[stage.name, signature]

    def artefacts(self, stage: type[Stage], cfg: DictConfig) -> Mapping[Key, Need]:
        """The artefacts that one is made of, each once and before what it serves, and itself last."""
        made: dict[Key, Need] = {}
        visited: set[Key] = set()

        def visit(need: Need) -> None:
            key, cfg = (need.stage.name, self.signature(need.stage, need.cfg)), need.stage.made_of(need.cfg)
            if key not in visited:
                visited.add(key)
                for before in need.stage().inputs(cfg).values():
                    visit(before)
                made[key] = Need(need.stage, cfg, need.remedy)

        visit(Need(stage, cfg))
        return made

    def expect(self, stage: type[Stage], cfg: DictConfig) -> None:
        """Count an artefact, and those that it is made of, among those that will be obtained.

        What is obtained without having been expected is counted from then on.
        """
        artefacts = self.artefacts(stage, cfg)
        absent = {key: key[0] in self.forced or not (self.root / key[0] / key[1]).is_dir() for key in artefacts}
        self._agenda.add({key: self._effort(need) if absent[key] else 0.0 for key, need in artefacts.items()})

    def _input(self, name: str, need: Need) -> Path:
        try:
            return self.obtain(need.stage, need.cfg, role="" if name == need.stage.name else name)
        except ValueError as error:
            if need.remedy:
                raise ValueError(f"of {name}: {error}; or {need.remedy}") from error
            raise

    def _made(
        self, stage: type[Stage], signature: str, cfg: DictConfig, inputs: Mapping[str, Path], title: str
    ) -> Path:
        final = self.root / stage.name / signature
        forced = stage.name in self.forced
        lock = final.with_suffix(LOCKED)
        with writable(final.parent), FileLock(lock):
            _mark_format(self.root)
            if final.is_dir() and not forced:
                check_whole(final)
                self.seconds[title] = _read_seconds(final.with_suffix(SECONDS))
                self.runtime.say(f"{self._agenda.place(stage.name, signature)} {title}: {REUSED} {signature}")
            else:
                self._make(stage, final, cfg, inputs, title, forced=forced)
            if not forced:
                # Safe to unlink: a waiter that gets the old inode sees st_nlink = 0 and locks a new file, then finds
                # the artefact complete. Not after a forced run: a second forced run would not stop at the complete
                # artefact, so all must share one lock file.
                with suppress(OSError):
                    lock.unlink()
        return final

    def _make(
        self,
        stage: type[Stage],
        final: Path,
        cfg: DictConfig,
        inputs: Mapping[str, Path],
        title: str,
        *,
        forced: bool,
    ) -> None:
        """Make an artefact while its lock is ours, from where a killed process left it unless that is forced."""
        signature, partial = final.name, final.with_suffix(PARTIAL)
        if forced:
            shutil.rmtree(partial, ignore_errors=True)
        begun = partial.is_dir() and any(partial.iterdir())
        partial.mkdir(exist_ok=True)
        doing = GOING_ON if begun else MAKING
        self.runtime.say(f"{self._agenda.place(stage.name, signature)} {title}: {doing} {signature}")
        start = time.monotonic()
        self._fill(stage, partial, cfg, inputs)
        self.seconds[title] = round(time.monotonic() - start, 3)
        self._agenda.done(stage.name, signature, time.monotonic() - start)
        # What a process that was killed had begun to write, which no other writes while the lock is ours.
        for unfinished in final.parent.glob(f"{signature}{SECONDS}.*.tmp"):
            unfinished.unlink()
        write_text(final.with_suffix(SECONDS), f"{self.seconds[title]}\n")
        replace(partial, final)

    def _fill(self, stage: type[Stage], partial: Path, cfg: DictConfig, inputs: Mapping[str, Path]) -> None:
        """Make everything in `partial` and bring it to the disk, unless an attempt came as far as its manifest."""
        if not (partial / MANIFEST).is_file():
            selection = select(cfg, stage.uses, stage.unread)
            stage().make(selection, inputs, partial, self.shop)
            write_text(partial / "config.yaml", OmegaConf.to_yaml(selection, resolve=True))
            for unfinished in partial.rglob("*.tmp"):
                if unfinished.is_file():
                    unfinished.unlink()
            write_manifest(partial, stage.scratch)
        for name in stage.scratch:
            shutil.rmtree(partial / name, ignore_errors=True)
        sync_folder(partial)

    def has(self, stage: type[Stage], cfg: DictConfig) -> bool:
        """Whether the stage's artefact is there."""
        return (self.root / stage.name / self.signature(stage, cfg)).is_dir()


def _mark_format(root: Path) -> None:
    """Say the format of a store that does not say it; of several processes, on any machine, one does."""
    with suppress(FileExistsError), (root / FORMAT_FILE).open("x") as file:
        file.write(f"{FORMAT}\n")


def require_format(root: Path) -> None:
    """Refuse a store of another format; one without the file is of format 1, as before there was one.

    Raises:
        ValueError: the file says another format, or cannot be read.
    """
    try:
        found = (root / FORMAT_FILE).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return  # A place that is no folder is named where it is written to.
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected {root / FORMAT_FILE} to say the format of a store, got {error}") from error
    if found not in (FORMAT, ""):  # Another process may be about to write it.
        raise ValueError(
            f"expected a store of format {FORMAT} at {root}, got one of format {found!r:.40}, of another version of "
            "ptq-diffusion; use that version, or another folder of outputs for this one"
        )


def _read_seconds(path: Path) -> float | None:
    """How long an artefact took to make; None where the file is missing or no number."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
