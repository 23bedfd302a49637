"""Checks that choices fit each other, before anything is computed."""

from collections.abc import Collection, Mapping

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.command.check.advice import guidance_advice
from ptq_diffusion.command.check.bounds import Room, require_room
from ptq_diffusion.command.check.condition import check_condition
from ptq_diffusion.command.check.estimate import least, parts_read
from ptq_diffusion.command.check.offload import check_offload
from ptq_diffusion.command.check.quantization import check_calibration, check_quantization
from ptq_diffusion.command.check.training import check_training
from ptq_diffusion.command.plan.case import Case, OutlineShop
from ptq_diffusion.command.plan.one_row import quantized_by_one_row
from ptq_diffusion.correction.contract import Requirements
from ptq_diffusion.correction.pipeline.corrected_network import stock_scale
from ptq_diffusion.correction.pipeline.pipeline_folder import require_guides
from ptq_diffusion.data import CalibrationSet, ImageSource
from ptq_diffusion.engine.chunks import require_chunks
from ptq_diffusion.engine.factory import construct, require_kind
from ptq_diffusion.engine.models import of_folder
from ptq_diffusion.engine.stage import Stage, needed
from ptq_diffusion.engine.tracker import Tracker
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric import FeatureExtractor, Reference
from ptq_diffusion.model import Condition, Denoiser, DiffusersDenoiser, Guided
from ptq_diffusion.model.family import FAMILIES
from ptq_diffusion.network import Backend, Simulated
from ptq_diffusion.network.layer import is_padded
from ptq_diffusion.network.onnx.extra import require_libraries, require_opset
from ptq_diffusion.quantizer import EmbeddingTables, Equalisation, LowRank, Quantizer, StepGroups
from ptq_diffusion.report.stages import goal_stages
from ptq_diffusion.rounding import ActivationScales, Rounding
from ptq_diffusion.sampler import Sampler, Table
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.drawing.layers import require_layers
from ptq_diffusion.stage.evaluate import build_metrics, prompts_of_images
from ptq_diffusion.stage.export import Export, export_name
from ptq_diffusion.stage.fit_setting import check_reach, fit_table, with_own_guidance
from ptq_diffusion.stage.planning.additions import CorrectionAdditions, OutsidePlan, policy_of
from ptq_diffusion.stage.planning.changes import MeasureChanges, require_sensitivity
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.reference import build_extractor
from ptq_diffusion.stage.sensitivity import MeasureSensitivity
from ptq_diffusion.stage.step_signal import MeasureStepSignal
from ptq_diffusion.stage.writing.onnx import WriteOnnx

KINDS: Mapping[str, type] = {
    "model": Denoiser,
    "sampler": Sampler,
    "bitwidth": BitwidthPolicy,
    "rounding": Rounding,
    "activation_scales": ActivationScales,
    "calibration_set": CalibrationSet,
    "backend": Backend,
    "correction": Requirements,
    "feature.extractor": FeatureExtractor,
    "reference": Reference,
    "data": ImageSource,
    "test_data": ImageSource,
}
"""The kind of every option that is one object."""


def check(cfg: DictConfig, goal: type[Stage], shop: Workshop, room: Room) -> None:
    """Build every part that a goal depends on once and show each the shape of its input.

    Args:
        cfg: the whole configuration.
        goal: the last stage.
        shop: builds the parts.
        room: that it may take, which counts before anything is listed or built whose size options say.

    Raises:
        ValueError: two choices do not fit; the message says which and what to do.
    """
    stages = [stage for last in goal_stages(cfg, goal) for stage in needed(last) if _takes_part(stage, cfg)]
    used = {key for stage in stages for key in stage.uses}
    _check_kinds(cfg, used)
    if "condition" in used or goal is EncodePrompts:
        check_condition(cfg, shop.model(cfg), shop, drawn="images" in used)
    if goal is EncodePrompts and not EncodePrompts.serves(cfg):
        raise ValueError("expected prompts to encode, got none; set condition=prompts condition.source.path=FILE")
    if "sampler" in used:
        _check_sampling(cfg, goal, used, shop, room)
    elif "training" in used and cfg.training is not None:
        check_training(cfg, room)


def _check_sampling(cfg: DictConfig, goal: type[Stage], used: Collection[str], shop: Workshop, room: Room) -> None:
    """Show each part the model and the table of the sampler."""
    model = shop.model(cfg)
    table = shop.table(cfg, model)
    require_room(least(cfg, model, len(table), shop, parts_read(cfg, goal)), room)
    check_offload(cfg, model, goal, shop)
    if Calibrate in needed(goal):
        check_calibration(cfg, model, shop)
    if "bitwidth" in used:
        policy, architecture = policy_of(cfg, model, table), _guided(cfg, model).architecture(table)
        policy.check(architecture, table)
        policy.roles.require_products(architecture)
        if "quantizer" in used:
            check_quantization(cfg, model, goal, shop)
        _check_measurements(cfg, goal)
    if "backend" in used:
        _check_backend(cfg, model, shop)
    if "correction" in used:
        _check_correction(cfg, model, shop)
        simulated = "backend" not in used or isinstance(construct(cfg.backend), Simulated)
        if goal is WriteOnnx or not simulated:
            _check_borders(cfg, model)
    if goal is Export:
        _check_export(cfg, model, shop)
    if goal is WriteOnnx:
        _check_onnx(cfg, model, table)
    if "layers" in used:
        require_layers(cfg)
    if "images" in used:
        require_chunks(list(cfg.seeds), cfg.images, cfg.micro_batch)
    if "judging" in used:
        _check_judging(cfg, shop.decoder(cfg).shape(model.shape))


def _takes_part(stage: type[Stage], cfg: DictConfig) -> bool:
    """Whether a stage is made on the way; what a plan may count is looked at only where it counts it."""
    return stage not in (CorrectionAdditions, OutsidePlan) or stage.serves(cfg)


def _check_kinds(cfg: DictConfig, used: Collection[str]) -> None:
    """Refuse an option that is used and names a class of another kind."""
    require_kind(cfg.logger, Tracker, "logger")
    groups = {key.partition(".")[0] for key in used}
    for option, kind in KINDS.items():
        # A group that nobody chose is asked for where it is selected.
        if option.partition(".")[0] in groups and (node := OmegaConf.select(cfg, option)) is not None:
            require_kind(node, kind, option)
    if "quantizer" in groups:
        for operand in ("weight", "activation", *({"softmax"} & cfg.quantizer.keys())):
            require_kind(cfg.quantizer[operand], Quantizer, f"quantizer.{operand}", partial=True)
        require_kind(cfg.quantizer.steps, StepGroups, "quantizer.steps")
        require_kind(cfg.quantizer.equalisation, Equalisation, "quantizer.equalisation")
        require_kind(cfg.quantizer.low_rank, LowRank, "quantizer.low_rank")
        require_kind(cfg.quantizer.embedding, EmbeddingTables, "quantizer.embedding")


def _guided(cfg: DictConfig, model: Denoiser) -> Guided:
    """The model, guided away from a null condition that stands for whatever it will be."""
    guidance, anything = cfg.condition.guidance, Condition(labels=torch.zeros(1))
    low, high = guidance.interval
    return Guided(model, anything, guidance.scale, (low, high))


def _check_backend(cfg: DictConfig, model: Denoiser, shop: Workshop) -> None:
    """Refuse a device without the backend, and a layer that it cannot compute."""
    backend = construct(cfg.backend)
    try:
        backend.require(shop.device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    # An outline, of which a plan is made, has no weights to quantize.
    if not isinstance(backend, Simulated) and not next(model.parameters()).is_meta:
        case = Case(cfg, OutlineShop(shop.runtime))
        quantized_by_one_row(cfg, case, shop).to_backend(backend)


def _check_borders(cfg: DictConfig, model: Denoiser) -> None:
    """Refuse a correction that gives another bias at the border, on a network that has one."""
    layers = (model.network.get_submodule(site.name) for site in model.sites() if site.weighted)
    if any(isinstance(layer, nn.Conv2d) and is_padded(layer) for layer in layers):
        construct(cfg.correction).check_borders()


def _check_measurements(cfg: DictConfig, goal: type[Stage]) -> None:
    """Refuse a measurement that cannot be taken: at other steps than the sampler's, or on too many images."""
    policy = construct(cfg.bitwidth)
    changes = goal in (MeasureChanges, MeasureSensitivity)
    measured = changes or goal is MeasureStepSignal
    ranges = construct(cfg.quantizer.steps).by_step
    if cfg.noise.steps is not None and (policy.by_step or measured or ranges):
        what = goal.name if measured else cfg.labels.bitwidth if policy.by_step else "quantizer.steps"
        raise ValueError(
            f"expected noise.steps=null with bits or ranges that belong to the sampler's own steps, got noise.steps="
            f"{cfg.noise.steps} with {what}; set noise.steps=null"
        )
    if with_own_guidance(cfg).noise.guidance is not None and (measured or policy.reads is not Evidence.NOTHING):
        raise ValueError(
            "expected noise.guidance=null with bits that are measured, for they belong to the guidance of the images, "
            f"got noise.guidance={cfg.noise.guidance} with {goal.name if measured else cfg.labels.bitwidth}; set "
            "noise.guidance=null"
        )
    if changes and not isinstance(policy, UnderBudget):
        raise ValueError(
            f"expected a policy whose offers sensitivities are measured of, got {cfg.labels.bitwidth}; choose one that "
            "spends a budget, such as bitwidth=budget"
        )
    if changes or policy.reads is Evidence.SENSITIVITY:
        require_sensitivity(cfg)


def _check_correction(cfg: DictConfig, model: Denoiser, shop: Workshop) -> None:
    correction, steps = construct(cfg.correction), fit_table(cfg, model, shop)
    check_reach(cfg, model, shop)
    correction.check(steps)
    correction.check_images(cfg.noise.images, model.shape[0])
    observations = shop.observations(cfg, model)
    correction.check_inputs([observations.form(site.name) for site in model.sites() if site.weighted])
    if cfg.noise.steps is not None:
        correction.check_carried(steps)
        if tuple(cfg.condition.guidance.interval) != (0, 1):
            # Between two steps of a fit, one inside of the interval, it is not known whether a step has pairs.
            correction.check_rows_apart()
    own = with_own_guidance(cfg).noise.guidance
    if own is not None:
        correction.check_other_guidance()
        if cfg.condition.guidance.scale == 1:
            correction.check_rows_apart()
    if advice := guidance_advice(correction, cfg.condition.guidance.scale, own):
        shop.runtime.say(advice)


def _check_export(cfg: DictConfig, model: Denoiser, shop: Workshop) -> None:
    if not of_folder(cfg):
        raise ValueError(
            f"expected a model of a pipeline's folder to export, got {cfg.labels.model}, for which diffusers has no "
            "pipeline; load goal=quantize by pd.load_quantized and goal=fit by pd.load_correction"
        )
    guidance, table = cfg.condition.guidance, shop.table(cfg, model)
    stock_scale(_guided(cfg, model), table)
    require_guides(export_name(cfg, model, shop), guidance.scale, table)
    construct(cfg.correction).check_single_evaluation()


def _check_onnx(cfg: DictConfig, model: Denoiser, table: Table) -> None:
    require_libraries()
    require_opset(cfg.onnx.opset)
    if isinstance(model, DiffusersDenoiser) and not model.family.has_graphs:
        kinds = ", ".join(name for name, family in FAMILIES.items() if family.has_graphs)
        raise ValueError(
            f"expected a network of which ONNX graphs are written, {kinds}, got {model.family.network_class.__name__}; "
            "set goal=export for a pipeline of it"
        )
    if any(step.is_learned for step in table):
        raise ValueError(
            "expected noise of the sampler, which those who run a graph know beforehand, got a learned variance, which "
            "graphs do not say; set +sampler.scheduler.variance_type=fixed_small, or goal=export"
        )
    construct(cfg.correction).check_single_evaluation()


def _check_judging(cfg: DictConfig, shape: tuple[int, int, int]) -> None:
    """Build the metrics, and show the feature extractor and the reference the number and shape of the images."""
    if cfg.images < 2 or cfg.judging.replicates < 2:
        raise ValueError(
            "expected at least 2 images of each seed and judging.replicates of at least 2, "
            f"got {cfg.images} and {cfg.judging.replicates}"
        )
    count = cfg.images * len(cfg.seeds)
    if count < 3:
        raise ValueError(
            f"expected at least 3 images in all, of which two are another's neighbours, got {count}; draw more"
        )
    if not 1 <= cfg.judging.neighbours <= count - 2:
        raise ValueError(
            f"expected judging.neighbours in 1..{count - 2} for {count} images in all, got {cfg.judging.neighbours}; "
            "draw more images or lower it"
        )
    prompts = prompts_of_images(cfg)
    for key, metric in zip(cfg.metric, build_metrics(cfg), strict=True):
        try:
            metric.check(prompts)
        except (ValueError, FileNotFoundError) as error:
            # A metric does not know the name that the configuration has for it.
            raise type(error)(f"{error}; it is metric.{key}, which ~metric.{key} leaves out") from error
    extractor = build_extractor(cfg)
    extractor.features(torch.zeros(1, *shape, dtype=torch.uint8))
    construct(cfg.reference).check(extractor, cfg.judging.neighbours)
