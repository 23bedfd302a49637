"""The artefacts of a store beside the runs that need them, and what may be removed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ptq_diffusion.command.check.bounds import in_units
from ptq_diffusion.engine.agenda import Key
from ptq_diffusion.engine.inventory import (
    RunNeeds,
    State,
    Stored,
    remove,
    remove_lock,
    runs_below,
    stored,
    users,
)
from ptq_diffusion.engine.run_files import LOCK


@dataclass(frozen=True)
class Shelf:
    """A store and the runs that are asked what they need.

    Args:
        runs_folder: of all runs of the outputs; those that are going on count whatever runs are asked.
        artefacts: of the store.
        runs: that are asked.
    """

    runs_folder: Path
    artefacts: Sequence[Stored]
    runs: Sequence[RunNeeds]

    @classmethod
    def of(cls, outputs: Path, folders: Sequence[Path]) -> "Shelf":
        """The store of some outputs and the runs below some folders, by default all of the outputs.

        Raises:
            FileNotFoundError: there is no store, or no run below a folder that is named.
        """
        artefacts, everywhere = stored(outputs / "store"), outputs / "runs"
        for folder in folders:
            if not runs_below([folder]):
                raise FileNotFoundError(f"expected runs below {folder}, found none; give folders of runs, or none")
        live = [run for run in runs_below([everywhere]) if run.live]
        runs = {run.folder: run for run in [*runs_below(folders or [everywhere]), *live]}
        return cls(everywhere, artefacts, list(runs.values()))

    @cached_property
    def users(self) -> Mapping[Key, Sequence[RunNeeds]]:
        """The runs that need every artefact."""
        return users(self.artefacts, self.runs)

    def removal(self, unfinished: bool) -> "Removal":
        """The artefacts that no run needs, and what processes that are gone left.

        Args:
            unfinished: whether also what they had begun and runs would go on from.
        """
        return Removal(
            self.runs_folder,
            [one for one in self.artefacts if self._is_removable(one, unfinished)],
            [lock for lock in self.runs_folder.rglob(LOCK) if not _is_live(lock, self.runs)],
            [one for one in self.artefacts if one.state is State.MAKING],
        )

    def _is_removable(self, one: Stored, unfinished: bool) -> bool:
        if one.state is State.MAKING or any(run.live for run in self.users[one.key]):
            return False
        begun = one.state is State.BEGUN and unfinished
        return begun or one.state is State.LEFT or not self.users[one.key]


@dataclass(frozen=True)
class Removal:
    """Artefacts and locks that are to be removed.

    Args:
        runs_folder: of all runs, which are looked at again before anything is removed.
        artefacts: with all that lies beside them.
        locks: of runs that nobody holds.
        making: artefacts that processes make, which stay.
    """

    runs_folder: Path
    artefacts: Sequence[Stored]
    locks: Sequence[Path]
    making: Sequence[Stored]

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to remove."""
        return not (self.artefacts or self.locks)

    @property
    def text(self) -> str:
        """The amounts that it takes away, in words."""
        size = in_units(sum(one.size for one in self.artefacts))
        return f"{len(self.artefacts):,} artefacts of {size} and {len(self.locks):,} locks of runs that ended"

    def carry_out(self) -> "Outcome":
        """Remove it, but for what somebody makes or needs by now."""
        gone = [one for one in self.artefacts if remove(one, [self.runs_folder])]
        locks = [lock for lock in self.locks if remove_lock(lock)]
        return Outcome(self, gone, locks)


@dataclass(frozen=True)
class Outcome:
    """Artefacts and locks that were removed.

    Args:
        removal: that was to be carried out.
        artefacts: that are gone.
        locks: that are gone.
    """

    removal: Removal
    artefacts: Sequence[Stored]
    locks: Sequence[Path]

    @property
    def text(self) -> str:
        """The amounts that were removed, and how much a process has taken in the meantime, in words."""
        gone = Removal(self.removal.runs_folder, self.artefacts, self.locks, ()).text
        taken = len(self.removal.artefacts) - len(self.artefacts)
        return f"removed {gone}" + (f"; {taken:,} stay, which a process needs by now" if taken else "")


def _is_live(lock: Path, runs: Sequence[RunNeeds]) -> bool:
    return any(run.live and run.folder == lock.parent.absolute() for run in runs)
