"""The end of a sweep. Every process of a parallel sweep imports this file first, so it is kept light."""

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
        for left in Path(folder).glob(FAILED):
            left.unlink()
        with read_write(config):
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={QuotedString(folder, Quote.single).with_quotes()}")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        found = [json.loads(path.read_text()) for path in sorted(Path(config.hydra.sweep.dir).glob(FAILED))]
        # A later job of the same run may have mended it.
        failed = {one["path"]: one for one in found if Path(one["path"]).is_file()}
        if not failed:
            return
        console = Console(soft_wrap=True, markup=False, highlight=False)
        console.print(f"{len(failed)} failed; the others are complete, and the same command makes only what is missing")
        for path, one in failed.items():
            console.print(f"{path}\n  {one['error']}: {one['message']}")
        raise SystemExit(1)
