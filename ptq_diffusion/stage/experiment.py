"""One experiment from its configuration: a report, or the artefact of any one stage."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.choices import choices
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.factory import construct, plain
from ptq_diffusion.stage.noise import Noise
from ptq_diffusion.stage.preflight import check
from ptq_diffusion.stage.reference import ReferenceStatistics
from ptq_diffusion.stage.report import make_report, run_folder, table
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.samples import CorrectedSamples, FullPrecisionSamples, QuantizedSamples
from ptq_diffusion.stage.schema import require_schema
from ptq_diffusion.stage.store import Stage, Store
from ptq_diffusion.stage.tracking import Tracker
from ptq_diffusion.stage.train_denoiser import TrainDenoiser
from ptq_diffusion.stage.train_feature_network import TrainFeatureNetwork
from ptq_diffusion.stage.trajectories import Trajectories

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        TrainDenoiser,
        TrainFeatureNetwork,
        ReferenceStatistics,
        Trajectories,
        Calibrate,
        Noise,
        FullPrecisionSamples,
        QuantizedSamples,
        CorrectedSamples,
        Evaluate,
    )
}


def run(cfg: DictConfig) -> None:
    """Make what `cfg.goal` names and print its path last.

    Raises:
        ValueError: the goal is neither report nor a stage, or an option is unknown or of another type.
    """
    require_schema(cfg)
    if cfg.goal != "report" and cfg.goal not in STAGES:
        raise ValueError(f"expected goal to be report or one of {', '.join(STAGES)}, got {cfg.goal!r}")
    runtime = Runtime(cfg.runtime.accelerator, cfg.runtime.progress)
    store = Store(Path(cfg.outputs) / "store", runtime)
    stage = STAGES.get(cfg.goal, Evaluate)
    if stage is Evaluate:
        check(cfg)
    if cfg.force:
        store.forget(stage, cfg)
    folder = run_folder(store, stage, cfg)
    runtime.log = folder / "log.txt"
    for line in choices(cfg, store, stage):
        runtime.say(line)
    quiet_libraries()
    with tracking(construct(cfg.logger), cfg, folder, runtime) as tracker:
        made = store.obtain(stage, cfg)
        if cfg.goal == "report":
            report = make_report(store, cfg, folder)
            tracker.report(report["rows"], [folder / figure for figure in report["figures"]])
            runtime.console.print(table(report))
            made = folder / "report.json"
    runtime.say(str(made))


@contextmanager
def tracking(tracker: Tracker, cfg: DictConfig, folder: Path, runtime: Runtime) -> Iterator[Tracker]:
    """A log that is open within the context and says whether it ended well."""
    success = False
    try:
        runtime.loggers = tracker.start(folder.name, folder, plain(cfg))
        yield tracker
        success = True
    finally:
        tracker.finish(success)


def quiet_libraries() -> None:
    """Leave the console to progress bars and results: no advice from Lightning, no deprecations inside it."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*IterableDataset.*__len__.*")
    warnings.filterwarnings("ignore", message=".*predict returned None.*")
