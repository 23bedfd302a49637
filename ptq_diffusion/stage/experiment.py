"""One experiment from its configuration: a report, or the artefact of any one stage."""

from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.factory import construct, plain
from ptq_diffusion.stage.noise import Noise
from ptq_diffusion.stage.reference import ReferenceStatistics
from ptq_diffusion.stage.report import make_report, run_folder, table
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.samples import CorrectedSamples, FullPrecisionSamples, QuantizedSamples
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
        ValueError: the goal is neither report nor a stage.
    """
    runtime = Runtime(cfg.runtime.accelerator, cfg.runtime.devices, cfg.runtime.progress)
    store = Store(Path(cfg.outputs) / "store", runtime)
    if cfg.goal == "report":
        _report(cfg, store, runtime)
    elif cfg.goal in STAGES:
        _stage(STAGES[cfg.goal], cfg, store, runtime)
    else:
        raise ValueError(f"expected goal to be report or one of {', '.join(STAGES)}, got {cfg.goal!r}")


def _stage(stage: type[Stage], cfg: DictConfig, store: Store, runtime: Runtime) -> None:
    if cfg.force:
        store.forget(stage, cfg)
    runtime.say(str(store.obtain(stage, cfg)))


def _report(cfg: DictConfig, store: Store, runtime: Runtime) -> None:
    if cfg.force:
        store.forget(Evaluate, cfg)
    folder = run_folder(store, cfg)
    tracker: Tracker = construct(cfg.logger)
    success = False
    try:
        tracker.start(cfg.name, folder, plain(cfg))
        report = make_report(store, cfg, folder)
        tracker.report(report["rows"], [folder / figure for figure in report["figures"]])
        success = True
    finally:
        tracker.finish(success)
    runtime.console.print(table(report))
    runtime.say(str(folder / "report.json"))
