"""Experiment trackers: where a run is logged beside its own files."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger


class Tracker(ABC):
    """A log of one run, opened at its start and closed at its end."""

    @abstractmethod
    def start(self, name: str, folder: Path, config: Mapping[str, Any]) -> Sequence[Logger]:
        """Open the log; the Lightning loggers that training reports to."""

    @abstractmethod
    def report(self, rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> None:
        """Log the report's table and figures, and the last row as the run's summary."""

    @abstractmethod
    def finish(self, success: bool) -> None:
        """Close the log."""


class NoTracker(Tracker):
    """A tracker that logs nothing beside the run's files."""

    def start(self, name: str, folder: Path, config: Mapping[str, Any]) -> Sequence[Logger]:  # noqa: ARG002
        return ()

    def report(self, rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> None:  # noqa: ARG002
        return

    def finish(self, success: bool) -> None:  # noqa: ARG002
        return


class WandbTracker(Tracker):
    """One Weights & Biases run for each job; nothing leaves the machine unless mode is online.

    Args:
        project: the project's name.
        mode: "offline" writes below the run's folder, "online" uploads.
        group: the runs' group, such as a sweep's name, or None.

    Raises:
        ValueError: another mode.
    """

    def __init__(self, project: str, mode: Literal["offline", "online"], group: str | None) -> None:
        if mode not in ("offline", "online"):
            raise ValueError(f"expected logger.mode offline or online, got {mode!r}; logger=none logs nothing")
        self.project, self.mode, self.group = project, mode, group
        self._logger: WandbLogger | None = None

    def start(self, name: str, folder: Path, config: Mapping[str, Any]) -> Sequence[Logger]:
        import wandb

        run = wandb.init(
            project=self.project,
            name=name,
            group=self.group,
            dir=folder,
            mode=self.mode,
            config=dict(config),
            settings=wandb.Settings(silent=True),
        )
        self._logger = WandbLogger(experiment=run)
        return [self._logger]

    def report(self, rows: Sequence[Mapping[str, Any]], figures: Sequence[Path]) -> None:
        logger = self._opened()
        columns = list(rows[0])
        logger.log_table("report", columns=columns, data=[[_cell(row[c]) for c in columns] for row in rows])
        for figure in figures:
            logger.log_image(figure.stem, [str(figure)])
        logger.experiment.summary.update({key: value for key, value in rows[-1].items() if not isinstance(value, list)})

    def finish(self, success: bool) -> None:
        import wandb

        if self._logger is not None:
            wandb.finish(exit_code=0 if success else 1)

    def _opened(self) -> WandbLogger:
        if self._logger is None:
            raise RuntimeError("expected a tracker that was started; call start before report")
        return self._logger


def _cell(value: object) -> object:
    return str(value) if isinstance(value, list) else value
