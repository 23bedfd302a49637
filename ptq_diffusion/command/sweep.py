"""Ends a sweep. Every process of a parallel one imports this file first, so it imports neither torch nor Lightning."""

import json
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write
from rich.console import Console

from ptq_diffusion.engine.run_files import FAILED


class ListFailures(Callback):
    """Lists what failed when all jobs of a sweep are over, and exits with 1 if anything did."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        """Give all jobs the sweep's folder, which each would place by options of its own, such as a swept `outputs`."""
        folder = str(config.hydra.sweep.dir)
        for path in Path(folder).glob(FAILED):
            path.unlink()
        with read_write(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={QuotedString(folder, Quote.single).with_quotes()}")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        entries = [json.loads(path.read_text()) for path in sorted(Path(config.hydra.sweep.dir).glob(FAILED))]
        # A later job of the same run may have mended it.
        failures = {entry["path"]: entry for entry in entries if Path(entry["path"]).is_file()}
        if not failures:
            return
        console = Console(soft_wrap=True, markup=False, highlight=False)
        count = len(failures)
        console.print(f"{count} failed; the others are complete, and the same command makes only what is missing")
        for path, failure in failures.items():
            console.print(f"{path}\n  {failure['error']}: {failure['message']}")
        raise SystemExit(1)
