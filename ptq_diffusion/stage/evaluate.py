"""Stage: every variant judged on the same noise."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.metric import FeatureExtractor, FeatureMoments, paired_fid, paired_mean, psnr
from ptq_diffusion.metric.cost import cost, usual_bits
from ptq_diffusion.model import Denoiser
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.numeric.plan import BitwidthPlan, LayerBits
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.factory import construct
from ptq_diffusion.stage.parts import build_model, build_quantizers, build_steps
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.samples import (
    QUANTIZING,
    SAMPLING,
    CorrectedSamples,
    FullPrecisionSamples,
    QuantizedSamples,
    read_images,
)
from ptq_diffusion.stage.store import ModelStage, write_json

VARIANTS = {
    "full_precision": FullPrecisionSamples.name,
    "quantized": QuantizedSamples.name,
    "corrected": CorrectedSamples.name,
}


class Evaluate(ModelStage):
    """`evaluation.json`: a row for each variant, paired differences, and the protocol that they hold for."""

    name = "evaluate"
    version = 1
    needs = (FullPrecisionSamples, QuantizedSamples, CorrectedSamples, Calibrate)
    uses = (*SAMPLING, *QUANTIZING, "correction", "metric", "reference")

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        judged = {"reference": construct(cfg.reference).checksum(), "extractor": _extractor(cfg).checksum()}
        return super().evidence(cfg) | judged

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> None:  # noqa: ARG002
        model = build_model(cfg)
        images = {variant: read_images(inputs[stage]) for variant, stage in VARIANTS.items()}
        judged = _judge(images, _extractor(cfg), cfg)
        costs = _costs(model, cfg)
        rows = [
            {
                "variant": variant,
                **costs[variant],
                **judged.rows[variant],
                "images": cfg.images,
                "seeds": list(cfg.seeds),
            }
            for variant in VARIANTS
        ]
        write_json(out / "evaluation.json", {"rows": rows, "paired": judged.paired, "protocol": judged.protocol})


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What the stage wrote."""
    return json.loads((folder / "evaluation.json").read_text())


@dataclass(frozen=True)
class Judgement:
    """Metrics by variant, paired differences, and what was compared with what."""

    rows: Mapping[str, Mapping[str, float | None]]
    paired: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, str]


def _judge(images: Mapping[str, Tensor], extractor: FeatureExtractor, cfg: DictConfig) -> Judgement:
    features = {variant: torch.cat(list(extractor.batches(batch))) for variant, batch in images.items()}
    own = FeatureMoments.of(features["full_precision"], extractor.checksum())
    reference = construct(cfg.reference)
    real = reference.moments(extractor)
    replicates, seed = cfg.metric.replicates, cfg.metric.seed
    metrics = {
        "fid": paired_fid(features, own if real is None else real, replicates, seed),
        "fid_to_fp": paired_fid(features, own, replicates, seed),
        "psnr_to_fp": paired_mean(
            {variant: psnr(batch, images["full_precision"]) for variant, batch in images.items()}, replicates, seed
        ),
    }
    rows = {
        variant: {
            "fid": metrics["fid"].estimates[variant].value,
            "fid_se": metrics["fid"].estimates[variant].standard_error,
            "fid_to_fp": metrics["fid_to_fp"].estimates[variant].value,
            "psnr_to_fp": None if variant == "full_precision" else metrics["psnr_to_fp"].estimates[variant].value,
        }
        for variant in images
    }
    paired = [
        {"a": a, "b": b, "metric": metric, "difference": found.difference, "low": found.low, "high": found.high}
        for metric, values in metrics.items()
        for (a, b), found in values.differences.items()
        if metric == "fid" or "full_precision" not in (a, b)
    ]
    against = "against the full-precision samples" if real is None else f"against {real.count:,} real images"
    protocol = {
        "metric": f"fid_{extractor.name}",
        "extractor": extractor.name,
        "extractor_checksum": extractor.checksum(),
        "against": against,
        "reference_checksum": reference.checksum(),
    }
    return Judgement(rows, paired, protocol)


def _costs(model: Denoiser, cfg: DictConfig) -> Mapping[str, Mapping[str, float]]:
    """Bits, bit operations and bytes of every variant; PTQD's correction itself costs two operations a pixel."""
    quantizers = build_quantizers(cfg, model)
    steps = len(build_steps(cfg, model))
    everywhere_float = BitwidthPlan(dict.fromkeys(quantizers.layers, LayerBits(FLOAT_BITS, FLOAT_BITS)))
    full = cost(model, everywhere_float, steps)
    rows = {}
    for variant in VARIANTS:
        plan = everywhere_float if variant == "full_precision" else quantizers.plan
        found, (weight, activation) = cost(model, plan, steps), usual_bits(model, plan)
        rows[variant] = {
            "weight_bits": weight,
            "activation_bits": activation,
            "bops_per_image": found.bops_per_image,
            "bops_saving": full.bops_per_image / found.bops_per_image,
            "weight_bytes": found.weight_bytes,
        }
    return rows


def _extractor(cfg: DictConfig) -> FeatureExtractor:
    return construct(cfg.metric.extractor)
