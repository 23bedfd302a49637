"""Stage: the feature statistics of real images, which samples are compared with."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.feature.feature import FeatureExtractor
from ptq_diffusion.metric.real_statistics import RealStatistics


class ReferenceStatistics(Stage):
    """`reference.safetensors`: moments of the features of all images of a data source, and some of the features."""

    name = "reference_statistics"
    version = 2
    uses = ("data", "feature.extractor")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        extractor = build_extractor(cfg)
        statistics = RealStatistics.of_images(construct(cfg.data).load().images, extractor)
        statistics.save(out / "reference.safetensors")
        counts = {"images": statistics.moments.count, "vectors": len(statistics.vectors)}
        write_json(out / "metrics.json", counts | {"extractor": statistics.moments.extractor})

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {"extractor": build_extractor(cfg).checksum(), "data": construct(cfg.data).checksum()}


def build_extractor(cfg: DictConfig) -> FeatureExtractor:
    """The feature extractor that `cfg.feature.extractor` names."""
    return construct(cfg.feature.extractor)
