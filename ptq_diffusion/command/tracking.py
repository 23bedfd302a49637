"""A run and its report as experiment trackers are told of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ptq_diffusion.engine.chunks import read_chunks
from ptq_diffusion.engine.factory import plain
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.tracker import Description, Guarded, Results, Tracker
from ptq_diffusion.report.report import step_rows
from ptq_diffusion.stage.drawing.variants import VARIANTS

TAGS = ("model", "sampler", "bitwidth", "correction")
"""Groups whose choices tag a run."""
SHOWN = 8
"""Samples of each variant that are logged."""
DRAWN = (1, 3)
"""Numbers of channels that are colours."""


@contextmanager
def tracking(tracker: Tracker, cfg: DictConfig, folder: Path, store: Store, signature: str) -> Iterator[Guarded]:
    """A log that is open within the context and says whether it ended well; its failures are lines, not errors."""
    runtime, guarded, success = store.runtime, Guarded(tracker, store.runtime.say), False
    tags = [str(cfg.labels[name]) for name in TAGS]
    run = Description(signature, folder.name, folder, cfg.goal, _sweep(cfg), tags, plain(cfg), runtime.say)
    try:
        runtime.loggers = guarded.start(run)
        yield guarded
        success = True
    finally:
        guarded.finish(success)


def log_report(tracker: Guarded, report: Mapping[str, Any], store: Store, cfg: DictConfig, folder: Path) -> None:
    """Log a report; whatever fails on the way is a line.

    Args:
        tracker: of the run.
        report: as report.json has it.
        store: that the report was made from.
        cfg: the whole configuration.
        folder: the run's folder.
    """
    tracker.attempt(lambda: tracker.report(_results(report, store, cfg, folder)), None)


def _results(report: Mapping[str, Any], store: Store, cfg: DictConfig, folder: Path) -> Results:
    choice = report["choice"]
    artefacts = {
        variant: store.root / stage.name / report["signatures"][stage.name] for variant, stage in VARIANTS.items()
    }
    images = {variant: next(read_chunks(place / "chunks"))["images"][:SHOWN] for variant, place in artefacts.items()}
    return Results(
        rows=report["rows"],
        paired=report["paired"],
        choice=None if choice is None else choice["chosen"],
        steps=step_rows(store, cfg),
        figures={Path(file).stem: folder / file for file in report["figures"]},
        images={variant: batch for variant, batch in images.items() if batch.shape[1] in DRAWN},
    )


def _sweep(cfg: DictConfig) -> str | None:
    """The name of the grid or the sweep that a run belongs to, None for a single run."""
    if grid := str(cfg.name).rpartition("/")[0]:
        return grid
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(str(HydraConfig.get().sweep.dir)).name
    return None
