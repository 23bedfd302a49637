"""Ends a sweep. Every process of a parallel one imports this file first, so it imports neither torch nor Lightning."""

import json
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from rich.console import Console

from ptq_diffusion.engine.run_files import FAILED


class ListFailures(Callback):
    """Ends a sweep: collects the runs of a grid, lists what failed, and exits with 1 if anything did."""

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
        console = Console(soft_wrap=True, markup=False, highlight=False)
        _collect(config, console)
        if not failures:
            return
        count = len(failures)
        console.print(f"{count} failed; the others are complete, and the same command makes only what is missing")
        for path, failure in failures.items():
            console.print(f"{path}\n  {failure['error']}: {failure['message']}")
        raise SystemExit(1)


def require_multirun(hydra: HydraConf) -> None:
    """Refuse a grid that is started as one run, unless its words give every option that the grid varies.

    Raises:
        ValueError: there is no -m in front; the message names the options that lack a value.
    """
    absent = _absent(hydra)
    if hydra.mode == RunMode.RUN and absent:
        experiment = hydra.runtime.choices.get("experiment")
        cell = " ".join(f"{key}=VALUE" for key in absent)
        raise ValueError(
            f"expected -m in front, for experiment={experiment} is a grid, got a single run; "
            f"ptq-diffusion -m experiment={experiment} runs all of it, {cell} one cell"
        )


def require_one_cell(hydra: HydraConf) -> None:
    """Refuse a grid where one run is composed, as `require_multirun` does.

    Raises:
        ValueError: the message names the options that lack a value.
    """
    if absent := _absent(hydra):
        experiment = hydra.runtime.choices.get("experiment")
        cell = ", ".join(f"'{key}=VALUE'" for key in absent)
        raise ValueError(
            f"expected one run, got experiment={experiment}, a grid; add {cell} for one cell of it, or run all by "
            f"`ptq-diffusion -m experiment={experiment}`"
        )


def _absent(hydra: HydraConf) -> list[str]:
    """The options that a grid varies and that no word gives; none of a single run."""
    varied = getattr(hydra.sweeper, "params", None) or {}
    # A word may hold references, which stand for nothing outside of a job.
    typed: Any = OmegaConf.to_container(cast(Any, hydra).overrides.task, resolve=False)
    words = {str(word).partition("=")[0] for word in typed}
    return [key for key in varied if key not in words]


def _collect(config: DictConfig, console: Console) -> None:
    """Print the table of a grid whose runs lie in a folder of their own, `name: FOLDER/...`, and what was written."""
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)
    grid = str(raw.get("name", "")).rpartition("/")[0]
    folder = Path(config.outputs) / "runs" / grid
    if not grid or "${" in grid or raw.get("goal") != "report" or not folder.is_dir():
        return
    from ptq_diffusion.command.collect import collect_runs

    try:
        collect_runs([str(folder)])
    except (FileNotFoundError, ValueError) as error:
        # Every run may have failed before it had a folder, and a damaged one of an earlier sweep fails none of this.
        console.print(f"not collected: {error}")
