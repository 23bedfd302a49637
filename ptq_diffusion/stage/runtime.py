"""What may differ between two runs without changing a number: the device, progress, loggers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.progress import track as rich_track

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


class TitledProgressBar(RichProgressBar):
    """A progress bar that says what is being done."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    @property
    def predict_description(self) -> str:
        """The words in front of the bar."""
        return self._title


@dataclass
class Runtime:
    """How to run, in no signature.

    Args:
        accelerator: Lightning's word for the device type: auto, cpu, gpu. One device is used.
        progress: whether to draw progress bars.
        loggers: Lightning loggers that training reports to.
        console: where messages go.
        log: a file that keeps every message with its time, once there is a folder for it.

    Raises:
        ValueError: no such device type, or this machine has none of it.
    """

    accelerator: str
    progress: bool
    loggers: Sequence[Logger] = ()
    console: Console = field(default_factory=Console)
    log: Path | None = None

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise ValueError(f"expected runtime.accelerator {', '.join(ACCELERATORS)}, got {self.accelerator!r}")
        if self.accelerator not in ("auto", "cpu") and torch.accelerator.current_accelerator() is None:
            raise ValueError(
                f"expected a machine with an accelerator, found none for runtime.accelerator={self.accelerator}; "
                "use auto or cpu"
            )

    @property
    def device_type(self) -> str:
        """The device type that `accelerator` comes to: cpu, cuda, mps."""
        found = None if self.accelerator == "cpu" else torch.accelerator.current_accelerator()
        return "cpu" if found is None else found.type

    def say(self, text: str) -> None:
        """One line for the user."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")

    def track(self, items: Iterable[int]) -> Iterable[int]:
        """The items, with a progress bar while they are gone through."""
        return rich_track(items, "bootstrap", console=self.console) if self.progress else items

    def trainer(
        self,
        folder: Path,
        title: str,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        **options: Any,  # noqa: ANN401
    ) -> L.Trainer:
        """A Lightning trainer on this device, with a progress bar of this title; `options` go to it as they are."""
        bar: list[Callback] = [TitledProgressBar(title)] if self.progress else []
        return L.Trainer(
            accelerator=self.accelerator,
            devices=1,
            logger=list(loggers),
            callbacks=[*bar, *callbacks],
            enable_progress_bar=self.progress,
            enable_model_summary=False,
            default_root_dir=folder,
            **options,
        )
