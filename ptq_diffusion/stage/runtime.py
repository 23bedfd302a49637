"""What may differ between two runs without changing a number: devices, progress, loggers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from rich.console import Console


@dataclass
class Runtime:
    """How to run, in no signature.

    Args:
        accelerator: Lightning's word for the device type: auto, cpu, gpu.
        devices: how many of them.
        progress: whether to draw progress bars.
        loggers: Lightning loggers that every trainer reports to.
        console: where messages go.
    """

    accelerator: str
    devices: int
    progress: bool
    loggers: Sequence[Logger] = ()
    console: Console = field(default_factory=Console)

    def say(self, text: str) -> None:
        """One line for the user."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def trainer(
        self,
        folder: Path,
        callbacks: Sequence[Callback] = (),
        extra_loggers: Sequence[Logger] = (),
        **options: Any,
    ) -> L.Trainer:
        """A Lightning trainer on these devices; `options` go to it as they are."""
        bar = [RichProgressBar()] if self.progress else []
        return L.Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            logger=[*self.loggers, *extra_loggers],
            callbacks=[*bar, *callbacks],
            enable_progress_bar=self.progress,
            enable_model_summary=False,
            default_root_dir=folder,
            **options,
        )
