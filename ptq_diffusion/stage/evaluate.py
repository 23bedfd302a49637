"""Stage: every variant judged on the same noise."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.cost import cost, usual_bits
from ptq_diffusion.metric.judgement import Settings, judge
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.numeric.grid import FLOAT_BITS
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.reference import build_extractor
from ptq_diffusion.stage.samples import SAMPLING, read_images
from ptq_diffusion.stage.samples_corrected import CorrectedSamples
from ptq_diffusion.stage.samples_full_precision import FullPrecisionSamples
from ptq_diffusion.stage.samples_quantized import QuantizedSamples

VARIANTS = {
    "full_precision": FullPrecisionSamples.name,
    "quantized": QuantizedSamples.name,
    "corrected": CorrectedSamples.name,
}


class Evaluate(ModelStage):
    """`evaluation.json`: a row for each variant, paired differences, and the protocol that they hold for.

    The features of every variant stay beside it, `features/<variant>.safetensors`, so that `collect` can pair variants
    of different runs.
    """

    name = "evaluate"
    version = 2
    needs = (FullPrecisionSamples, QuantizedSamples, Fit, CorrectedSamples)
    uses = (*SAMPLING, "bitwidth", "metric", "reference")

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        judged = {"reference": construct(cfg.reference).checksum(), "extractor": build_extractor(cfg).checksum()}
        return super().evidence(cfg) | judged

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        images = {variant: read_images(inputs[stage]) for variant, stage in VARIANTS.items()}
        extractor = build_extractor(cfg)
        settings = Settings(cfg.metric.replicates, cfg.metric.seed, cfg.metric.neighbours, list(cfg.seeds))
        judged = judge(images, extractor, construct(cfg.reference), settings, shop.runtime.track)
        (out / "features").mkdir(exist_ok=True)
        for variant, found in judged.features.items():
            found.save(out / "features" / f"{variant}.safetensors", extractor.checksum())
        costs = _costs(cfg, FittedCorrection.load(inputs[Fit.name]), shop)
        drawn = {"images": cfg.images, "seeds": list(cfg.seeds)}
        rows = [{"variant": name} | costs[name] | dict(judged.rows[name]) | drawn for name in VARIANTS]
        evaluation = {"rows": rows, "paired": judged.paired, "protocol": judged.protocol}
        write_json(out / "evaluation.json", evaluation | {"protocol_id": judged.protocol_id})


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What the stage wrote."""
    return json.loads((folder / "evaluation.json").read_text())


def _costs(cfg: DictConfig, fitted: FittedCorrection, shop: Workshop) -> dict[str, dict[str, float]]:
    """Bits, bit operations and bytes by variant.

    A correction adds its own operations, in float, its coefficients, and evaluations of the network beside once a step.
    """
    model, steps, quantized = shop.model(cfg), len(shop.table(cfg)), shop.plan(cfg)
    unquantized = BitwidthPlan(dict.fromkeys(quantized.layers, LayerBits(FLOAT_BITS, FLOAT_BITS)))
    full = cost(model, unquantized, steps).bops_per_image

    def of(plan: BitwidthPlan, again: int = 0, macs: int = 0, size: int = 0) -> dict[str, float]:
        weight, activation = usual_bits(model, plan)
        found = cost(model, plan, steps + again)
        bops = found.bops_per_image + macs * FLOAT_BITS**2
        return {
            "weight_bits": weight,
            "activation_bits": activation,
            "bops_per_image": bops,
            "bops_saving": full / bops,
            "weight_bytes": found.weight_bytes + size,
        }

    return {
        "full_precision": of(unquantized),
        "quantized": of(quantized),
        "corrected": of(quantized, fitted.evaluations, fitted.macs(model.shape), fitted.size),
    }
