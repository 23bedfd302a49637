"""Runs one experiment from its configuration: to a report, or to the artefact of any one stage."""

from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.artefact.files import writable
from ptq_diffusion.command.check.preflight import check, memory_named
from ptq_diffusion.command.check.schema import require_schema
from ptq_diffusion.command.effort import effort
from ptq_diffusion.command.preamble import preamble
from ptq_diffusion.command.run_name import named
from ptq_diffusion.command.tracking import log_report, tracking
from ptq_diffusion.engine.allocator import keep_freed_memory
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.plugins import PLUGINS, require_plugins
from ptq_diffusion.engine.run_files import LOG, REPORT
from ptq_diffusion.engine.run_folder import locked_run_folder
from ptq_diffusion.engine.runtime import Runtime, quiet_libraries
from ptq_diffusion.engine.stage import Stage, upstream
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.report.report import make_report, table
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.drawing.image_files import ImageFiles
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.export import Export
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.float_path import FloatPath
from ptq_diffusion.stage.noise import Noise
from ptq_diffusion.stage.plan import Plan
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.reference import ReferenceStatistics
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples
from ptq_diffusion.stage.sensitivity import MeasureSensitivity
from ptq_diffusion.stage.step_signal import MeasureStepSignal
from ptq_diffusion.stage.training.latents import EncodeLatents
from ptq_diffusion.stage.training.train_autoencoder import TrainAutoencoder
from ptq_diffusion.stage.training.train_denoiser import TrainDenoiser
from ptq_diffusion.stage.training.train_feature_network import TrainFeatureNetwork
from ptq_diffusion.stage.training.train_latent_denoiser import TrainLatentDenoiser
from ptq_diffusion.stage.trajectories import Trajectories

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        TrainAutoencoder,
        EncodeLatents,
        TrainDenoiser,
        TrainLatentDenoiser,
        TrainFeatureNetwork,
        ReferenceStatistics,
        EncodePrompts,
        Trajectories,
        Calibrate,
        FloatPath,
        MeasureStepSignal,
        MeasureSensitivity,
        Plan,
        Quantize,
        Noise,
        Fit,
        FullPrecisionSamples,
        QuantizedSamples,
        CorrectedSamples,
        Export,
        ImageFiles,
        Evaluate,
    )
}


def run(cfg: DictConfig) -> Path:
    """Make what `cfg.goal` names and print its path last; the path.

    Raises:
        ValueError: the goal is neither report nor a stage, does not need what is forced, an option is unknown or of
            another type, or a plugin cannot be imported.
        OSError: the outputs cannot be written; what was finished is kept.
    """
    require_schema(cfg)
    require_plugins(cfg.get(PLUGINS, ()))
    cfg = named(cfg)
    if cfg.goal != "report" and cfg.goal not in STAGES:
        raise ValueError(f"expected goal to be report or one of {', '.join(STAGES)}, got {cfg.goal!r}")
    stage = STAGES.get(cfg.goal, Evaluate)
    runtime = Runtime(cfg.runtime.accelerator, cfg.runtime.progress, cfg.runtime.devices)
    shop = Workshop(runtime, plugins=cfg.get(PLUGINS, ()))
    store = Store(Path(cfg.outputs) / "store", shop, forced_stages(cfg.force, stage), effort)
    quiet_libraries()
    check(cfg, stage, shop)
    keep_freed_memory()
    with writable(Path(cfg.outputs) / "runs"), memory_named(cfg, shop):
        with locked_run_folder(store, stage, cfg) as folder:
            return _run(cfg, stage, store, folder)


def _run(cfg: DictConfig, stage: type[Stage], store: Store, folder: Path) -> Path:
    runtime = store.runtime
    runtime.log = folder / LOG
    for line in preamble(cfg, store, stage):
        runtime.say(line)
    with tracking(construct(cfg.logger), cfg, folder, store, store.signature(stage, cfg)) as tracker:
        result = store.obtain(stage, cfg)
        if cfg.goal == "report":
            report = make_report(store, cfg, folder)
            log_report(tracker, report, store, cfg, folder)
            runtime.console.print(table(report))
            result = folder / REPORT
    runtime.say(str(result))
    return result


def forced_stages(force: bool | str, goal: type[Stage]) -> frozenset[str]:
    """The stages that are made again: none, all that the goal is made of, or one and what is made of it.

    Raises:
        ValueError: `force` names no stage that the goal is made of.
    """
    stages = upstream(goal)
    if isinstance(force, bool):
        return stages if force else frozenset()
    if force not in stages:
        raise ValueError(f"expected force to be false, true or one of {', '.join(sorted(stages))}, got {force!r}")
    return frozenset(name for name in stages if force in upstream(STAGES[name]))
