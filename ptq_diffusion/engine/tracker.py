"""The contract of experiment trackers: where a run is logged beside its own files, and never fails for it."""

from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger
from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class Description:
    """A run as trackers are told of it at its start.

    Args:
        id: the signature of what is made: the same run has the same one, whenever and wherever it is repeated.
        name: of the run's folder.
        folder: the run's, which exists.
        job_type: what is made: report, or a stage.
        group: the sweep that the run belongs to, or None.
        tags: names of its choices.
        config: the resolved configuration.
        say: shows the user a line.
    """

    id: str
    name: str
    folder: Path
    job_type: str
    group: str | None
    tags: Sequence[str]
    config: Mapping[str, Any]
    say: Callable[[str], None]


@dataclass(frozen=True)
class Results:
    """The results of a report as trackers log them.

    Args:
        rows: a row for each variant.
        paired: the difference of every two variants in every metric.
        choice: what `correction=auto` chose, or None.
        steps: diagnostics of the correction, a mapping for each step.
        figures: files by their names.
        images: by variant the first samples, (N, C, H, W) uint8 of 1 or 3 channels; row i is of one noise in all.
    """

    rows: Sequence[Mapping[str, Any]]
    paired: Sequence[Mapping[str, Any]]
    choice: str | None = None
    steps: Sequence[Mapping[str, float | None]] = ()
    figures: Mapping[str, Path] = field(default_factory=dict)
    images: Mapping[str, Tensor] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """Every metric and cost as VARIANT/METRIC; every difference as A - B/METRIC with its interval."""
        numbers = {f"{row['variant']}/{name}": value for row in self.rows for name, value in row.items()}
        for pair in self.paired:
            name = f"{pair['a']} - {pair['b']}/{pair['metric']}"
            numbers |= {name: pair["difference"], f"{name}/low": pair["low"], f"{name}/high": pair["high"]}
        return {name: value for name, value in numbers.items() if _is_number(value)}

    def step_numbers(self) -> list[dict[str, float]]:
        """The diagnostics of every step without those that do not apply, named steps/NAME, and its place steps/i."""
        rows = [{f"steps/{name}": value for name, value in step.items() if value is not None} for step in self.steps]
        return [{"steps/i": float(i)} | row for i, row in enumerate(rows)]


class Tracker(ABC):
    """A log of one run, opened at its start and closed at its end."""

    @abstractmethod
    def start(self, run: Description) -> Sequence[Logger]:
        """Open the log; the Lightning loggers that training reports to."""

    @abstractmethod
    def report(self, results: Results) -> None:
        """Log the report: numbers, curves over steps, figures and images."""

    @abstractmethod
    def finish(self, success: bool) -> None:
        """Close the log."""


class Guarded(Tracker):
    """A tracker whose first failure is one line for the user, after which the run goes on without it.

    Args:
        tracker: whatever it raises, the experiment does not fail.
        say: shows the user a line.
    """

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._tracker, self._say, self._failed = tracker, say, False

    def start(self, run: Description) -> Sequence[Logger]:
        none: Sequence[Logger] = ()
        loggers = self.attempt(lambda: self._tracker.start(run), none)
        return [_GuardedLogger(logger, self) for logger in loggers]

    def report(self, results: Results) -> None:
        self.attempt(lambda: self._tracker.report(results), None)

    def finish(self, success: bool) -> None:
        self.attempt(lambda: self._tracker.finish(success), None)

    def attempt(self, action: Callable[[], Value], otherwise: Value) -> Value:
        """Does an action and returns its result; `otherwise` where it fails, and always after a failure."""
        if self._failed:
            return otherwise
        try:
            return action()
        except Exception as error:
            self._failed = True
            name = type(self._tracker).__name__
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._say(f"{name} failed, and the run goes on without it ({reason}); logger=none leaves it out")
            return otherwise


class _GuardedLogger(Logger):
    """A Lightning logger whose failure is its tracker's."""

    def __init__(self, logger: Logger, guard: Guarded) -> None:
        super().__init__()
        self._logger, self._guard = logger, guard

    @property
    def name(self) -> str | None:
        return self._guard.attempt(lambda: self._logger.name, None)

    @property
    def version(self) -> int | str | None:
        return self._guard.attempt(lambda: self._logger.version, None)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._guard.attempt(lambda: self._logger.log_metrics(dict(metrics), step), None)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **options: Any) -> None:  # noqa: ANN401
        self._guard.attempt(lambda: self._logger.log_hyperparams(params, *args, **options), None)

    def save(self) -> None:
        self._guard.attempt(self._logger.save, None)

    def finalize(self, status: str) -> None:
        self._guard.attempt(lambda: self._logger.finalize(status), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
