"""Stage: every variant judged on the same noise."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ptq_diffusion.artefact.files import read_json, write_json
from ptq_diffusion.bitwidth.cost import CostOutsidePlan
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.correction.fitted import FILES as CORRECTION
from ptq_diffusion.data import Prompts
from ptq_diffusion.data.prompts import prompt_number
from ptq_diffusion.engine.chunks import read_chunks, run_chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.cost import VariantCost, cost, variant_cost
from ptq_diffusion.metric.gathering import Gathering
from ptq_diffusion.metric.judgement import judge
from ptq_diffusion.metric.metric import Metric, Settings
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.network.saving import FILES as QUANTIZED
from ptq_diffusion.network.saving import equalised_layers, ranks_of_layers
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.stage.drawing.drift import MeasureDrift, read_drift
from ptq_diffusion.stage.drawing.variants import VARIANTS
from ptq_diffusion.stage.evaluation.evaluation import DescribeImages, gather
from ptq_diffusion.stage.evaluation.schema import Evaluation, require_shape
from ptq_diffusion.stage.evaluation.stored_images import PairedImages
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.plan import Plan, read_plan
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize
from ptq_diffusion.stage.reference import build_extractor
from ptq_diffusion.stage.samples import SAMPLING

EVALUATION = "evaluation.json"
"""The file of the artefact."""
TABLED = ("fid", "fid_to_fp")
"""Metrics that every table and figure of reports shows."""


class Evaluate(ModelStage):
    """`evaluation.json`: a row for each variant, paired differences, and the protocol that they hold for.

    Beside them, `torchmetrics` has the numbers that torchmetrics comes to by itself, as VARIANT/METRIC, `drift` that of
    the states, and `higher_is_better` the metrics of which that is so. The features of every variant stay in
    `features/<variant>.safetensors`, so that `collect` can pair variants of different runs.
    """

    name = "evaluate"
    version = 3
    needs = (Plan, Quantize, *VARIANTS.values(), MeasureDrift, Fit, EncodePrompts)
    uses = (*SAMPLING, "feature", "reference", "metric", "judging")
    scratch = ("batches",)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        extractor = build_extractor(cfg)
        checksums = {"reference": construct(cfg.reference).checksum(extractor), "extractor": extractor.checksum()}
        metrics = {metric.name: checksum for metric in build_metrics(cfg) if (checksum := metric.checksum())}
        return super().evidence(cfg) | checksums | metrics

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        shop.release_drawing()
        reference, gathering = construct(cfg.reference), build_gathering(cfg)
        batches = stored_images(inputs, gathering.extractor.batch).chunks()
        run_chunks(partial(self.describer, cfg, inputs), batches, out / "batches", shop, self.title)
        real = reference.statistics(gathering.extractor)
        incumbents = gather(gathering, read_chunks(out / "batches"), list(VARIANTS), real)
        judgement = judge(gathering, real, reference.checksum(gathering.extractor), judging(cfg), shop.runtime.track)
        (out / "features").mkdir(exist_ok=True)
        for variant, features in judgement.features.items():
            features.save(out / "features" / f"{variant}.safetensors", gathering.extractor.checksum())
        costs = variant_costs(cfg, inputs, shop)
        sampling = {"images": cfg.images, "seeds": list(cfg.seeds)}
        rows = [{"variant": name} | asdict(costs[name]) | dict(judgement.rows[name]) | sampling for name in VARIANTS]
        content = {"rows": rows, "paired": judgement.paired, "torchmetrics": incumbents}
        drift = {variant: asdict(drift) for variant, drift in read_drift(inputs[MeasureDrift.name]).items()}
        better = [metric.name for metric in gathering.metrics if metric.higher_is_better]
        protocol = {"protocol": judgement.protocol, "protocol_id": judgement.protocol_id}
        write_json(out / EVALUATION, content | {"drift": drift, "higher_is_better": better} | protocol)

    def describer(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> DescribeImages:  # noqa: ARG002
        """The work of every device."""
        gathering = build_gathering(cfg)
        return DescribeImages(gathering, stored_images(inputs, gathering.extractor.batch))


def build_gathering(cfg: DictConfig) -> Gathering:
    """The gathering of what `cfg.metric` reads, in the space of `cfg.feature`."""
    return Gathering(build_extractor(cfg), build_metrics(cfg), prompts_of_images(cfg))


def stored_images(inputs: Mapping[str, Path], batch: int) -> PairedImages:
    """The images of all variants, in batches of this size."""
    return PairedImages({variant: inputs[stage.name] for variant, stage in VARIANTS.items()}, batch)


def judging(cfg: DictConfig) -> Settings:
    """The settings that all metrics share."""
    return Settings(cfg.judging.replicates, cfg.judging.seed, cfg.judging.neighbours, list(cfg.seeds))


def build_metrics(cfg: DictConfig) -> Sequence[Metric]:
    """The metrics that `cfg.metric` names, in its order, which is that of a report's columns.

    Raises:
        ValueError: one is no metric, two have one name, or one that tables show is left out.
    """
    metrics = {key: construct(node) for key, node in cfg.metric.items()}
    for key, metric in metrics.items():
        if not isinstance(metric, Metric):
            kind = type(metric).__name__
            raise ValueError(f"expected a metric as metric.{key}, got {kind}; leave it out with ~metric.{key}")
    names = [metric.name for metric in metrics.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"expected metrics of different names, got {', '.join(twice)} twice; leave one of them out")
    if absent := [name for name in TABLED if name not in names]:
        raise ValueError(
            f"expected {' and '.join(TABLED)} among the metrics, for tables show them, got no {absent[0]}; "
            f"take it in with +metric@metric.{absent[0]}={absent[0]}"
        )
    return list(metrics.values())


def prompts_of_images(cfg: DictConfig) -> list[str] | None:
    """The prompt of every image, seed by seed; None of a model without prompts."""
    source = None if cfg.condition.source is None else construct(cfg.condition.source)
    if not isinstance(source, Prompts):
        return None
    texts = source.texts()
    return [texts[prompt_number(index, "images", len(texts))] for _ in cfg.seeds for index in range(cfg.images)]


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The content of `evaluation.json` in the stage's folder.

    Raises:
        ValueError: it is damaged.
    """
    content: dict[str, Any] = read_json(folder / EVALUATION)
    try:
        require_shape(Evaluation, content)
    except ValueError as error:
        raise ValueError(
            f"expected {folder / EVALUATION} as it was written, got {error}; remove the folder, and the same command "
            "makes it again"
        ) from error
    return content


def variant_costs(cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> dict[str, VariantCost]:
    """The cost of every variant.

    A correction adds its own operations, in float, its coefficients, and the evaluations of the network that it takes
    in addition to one a step. Bytes are those of the files: packed integers, scales, settings of every step and
    coefficients.
    """
    model = shop.guided(cfg, inputs)
    table, plan = shop.table(cfg, model), read_plan(inputs[Plan.name])
    architecture, steps = model.architecture(table), len(table)
    unquantized = BitwidthPlan.constant(dict.fromkeys(plan.sites, LayerBits(FLOAT_BITS, FLOAT_BITS)))
    correction = FittedCorrection.load(inputs[Fit.name])
    network = bytes_of(inputs[Quantize.name], QUANTIZED)
    folder = inputs[Quantize.name]
    extra = CostOutsidePlan(equalised_layers(folder), ranks_of_layers(folder))
    coefficients = bytes_of(inputs[Fit.name], CORRECTION)
    float_bytes = cost(architecture, unquantized, steps).weight_bytes
    correction_work = (correction.evaluations, correction.macs(model.shape))
    return {
        "full_precision": variant_cost(architecture, unquantized, steps, float_bytes),
        "quantized": variant_cost(architecture, plan, steps, network, outside_plan=extra),
        "corrected": variant_cost(architecture, plan, steps, network + coefficients, *correction_work, extra),
    }


def bytes_of(folder: Path, names: Sequence[str]) -> int:
    """The sizes of some files of an artefact, together."""
    return sum((folder / name).stat().st_size for name in names)
