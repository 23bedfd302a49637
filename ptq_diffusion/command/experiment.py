"""Runs one experiment from its configuration: to a report, or to the artefact of any one stage."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import diffusers
import torch
from omegaconf import DictConfig, OmegaConf

from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.artefact.files import writable
from ptq_diffusion.command.check.bounds import Room
from ptq_diffusion.command.check.estimate import memory_named
from ptq_diffusion.command.check.preflight import check
from ptq_diffusion.command.check.schema import require_schema
from ptq_diffusion.command.conf import PACKAGE
from ptq_diffusion.command.effort import effort
from ptq_diffusion.command.preamble import preamble
from ptq_diffusion.command.run_name import named
from ptq_diffusion.command.tracking import log_report, tracking
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.memory.allocator import keep_freed_memory
from ptq_diffusion.engine.plugins import PLUGINS, require_plugins
from ptq_diffusion.engine.ranks import Ranks
from ptq_diffusion.engine.run_files import LOG, REPORT
from ptq_diffusion.engine.run_folder import locked_run_folder
from ptq_diffusion.engine.runtime import Runtime, device_type_of, quiet_libraries
from ptq_diffusion.engine.stage import Stage, upstream
from ptq_diffusion.engine.store import Store
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.report.report import make_report, table
from ptq_diffusion.report.stages import goal_stages
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.calibration.choose_states import ChooseStates
from ptq_diffusion.stage.drawing.drift import MeasureDrift
from ptq_diffusion.stage.drawing.image_files import ImageFiles
from ptq_diffusion.stage.drawing.layers import MeasureLayers
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.export import Export
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.float_path import FloatPath
from ptq_diffusion.stage.noise import Noise
from ptq_diffusion.stage.plan import Plan
from ptq_diffusion.stage.planning.additions import CorrectionAdditions, OutsidePlan
from ptq_diffusion.stage.planning.changes import MeasureChanges
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.reference import ReferenceStatistics
from ptq_diffusion.stage.rounding.learn_scales import LearnScales
from ptq_diffusion.stage.rounding.offered import RoundOffers
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct
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
from ptq_diffusion.stage.writing.onnx import WriteOnnx

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
        ChooseStates,
        Calibrate,
        FloatPath,
        MeasureStepSignal,
        RoundOffers,
        MeasureChanges,
        MeasureSensitivity,
        CorrectionAdditions,
        OutsidePlan,
        Plan,
        Reconstruct,
        LearnScales,
        Quantize,
        Noise,
        Fit,
        FullPrecisionSamples,
        QuantizedSamples,
        CorrectedSamples,
        Export,
        WriteOnnx,
        ImageFiles,
        MeasureDrift,
        MeasureLayers,
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
    quiet_libraries()
    ranks = Ranks.found(device_type_of(str(OmegaConf.select(cfg, "runtime.accelerator", default="auto"))))
    if ranks is None:
        return _run_here(cfg, None)
    if not ranks.is_first:
        keep_freed_memory()
        ranks.agree(environment(cfg))
        # The first process tells of its errors; what they are, no other process says once more.
        return Path(str(ranks.serve() or cfg.outputs))
    with ranks.leading() as results:
        ranks.agree(environment(cfg))
        results.append(_run_here(cfg, ranks))
        return Path(str(results[-1]))


def environment(cfg: DictConfig) -> dict[str, object]:
    """The facts that are to be the same in all processes that share the work of a configuration, by name."""
    options = dict(_dotted("", OmegaConf.to_container(cfg, resolve=False)))
    libraries = {library.__name__: str(library.__version__) for library in (torch, diffusers)}
    sources = files_digest(sorted(PACKAGE.rglob("*.py")))
    return options | libraries | {"OMP_NUM_THREADS": torch.get_num_threads(), "the source of ptq_diffusion": sources}


def _dotted(prefix: str, node: object) -> Iterator[tuple[str, object]]:
    """The values of a plain configuration by their dotted names."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _dotted(f"{prefix}.{key}" if prefix else str(key), value)
    else:
        yield prefix, node


def _run_here(cfg: DictConfig, ranks: Ranks | None) -> Path:
    require_schema(cfg)
    require_plugins(cfg.get(PLUGINS, ()))
    cfg = named(cfg)
    stage = goal_of(cfg)
    runtime = Runtime.of_options(cfg.runtime, ranks=ranks)
    shop = Workshop(runtime, plugins=cfg.get(PLUGINS, ()))
    store = Store(Path(cfg.outputs) / "store", shop, forced_stages(cfg.force, goal_stages(cfg, stage)), effort)
    check(cfg, stage, shop, Room.here(Path(cfg.outputs), shop.device))
    keep_freed_memory()
    with writable(Path(cfg.outputs) / "runs"), memory_named(cfg, shop):
        with locked_run_folder(store, stage, cfg) as folder:
            return _run(cfg, stage, store, folder)


def goal_of(cfg: DictConfig) -> type[Stage]:
    """The stage that `cfg.goal` names; a report is made of the last.

    Raises:
        ValueError: it is neither report nor a stage.
    """
    if cfg.goal != "report" and cfg.goal not in STAGES:
        raise ValueError(f"expected goal to be report or one of {', '.join(STAGES)}, got {cfg.goal!r}")
    return STAGES.get(cfg.goal, Evaluate)


def _run(cfg: DictConfig, stage: type[Stage], store: Store, folder: Path) -> Path:
    runtime = store.runtime
    runtime.log = folder / LOG
    for line in preamble(cfg, store, stage):
        runtime.say(line)
    with tracking(construct(cfg.logger), cfg, folder, store, store.signature(stage, cfg)) as tracker:
        for one in goal_stages(cfg, stage):
            store.expect(one, cfg)
        result = store.obtain(stage, cfg)
        if cfg.goal == "report":
            report = make_report(store, cfg, folder)
            log_report(tracker, report, store, cfg, folder)
            runtime.console.print(table(report))
            result = folder / REPORT
    runtime.say(str(result))
    return result


def forced_stages(force: bool | str, goals: Sequence[type[Stage]]) -> frozenset[str]:
    """The stages that are made again: none, all that the goal is made of, or one and what is made of it.

    Args:
        force: whether to make anything again, or the name of a stage.
        goals: the last stages of the goal, see `goal_stages`.

    Raises:
        ValueError: `force` names no stage that the goal is made of.
    """
    stages = frozenset[str]().union(*(upstream(goal) for goal in goals))
    if isinstance(force, bool):
        return stages if force else frozenset()
    if force == MeasureLayers.name and force not in stages:
        raise ValueError(
            "expected a goal that compares layers, got force='layers' with one that does not; goal=report does "
            "where layers.images is above 0: set layers.images=8"
        )
    if force not in stages:
        raise ValueError(f"expected force to be false, true or one of {', '.join(sorted(stages))}, got {force!r}")
    return frozenset(name for name in stages if force in upstream(STAGES[name]))
