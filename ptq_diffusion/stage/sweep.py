"""The end of a sweep. Every process of a parallel sweep imports this file first, so it is kept light."""

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

FAILURE = "failure.json"
"""The file that a failed job leaves in its run's folder."""


class ListFailures(Callback):
    """Lists what failed when all jobs of a sweep are over, and exits with 1 if anything did."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        sweep = str(config.hydra.sweep.dir)
        paths = sorted((Path(config.outputs) / "runs").rglob(FAILURE))
        failed = {path: found for path in paths if (found := json.loads(path.read_text()))["sweep"] == sweep}
        if not failed:
            return
        console = Console(soft_wrap=True, markup=False, highlight=False)
        console.print(f"{len(failed)} failed; the others are complete, and the same command makes only what is missing")
        for path, found in failed.items():
            console.print(f"{path}\n  {found['error']}: {found['message']}")
        raise SystemExit(1)
