"""Stage: the feature statistics of real images, which samples are compared with."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, chunks, read_chunks, run_chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.metric.feature.feature import FeatureExtractor, Features
from ptq_diffusion.metric.real_statistics import RealStatistics

BATCHES = "batches"
"""The folder of the features of each batch, behind which an attempt that was interrupted goes on."""


class DescribeRealImages(ChunkWork):
    """The features of real images, a batch of the extractor's size at a time.

    Args:
        extractor: of features.
        images: all of them, (N, C, H, W) uint8.
    """

    def __init__(self, extractor: FeatureExtractor, images: Tensor) -> None:
        super().__init__()
        self.extractor, self.images = extractor, images

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:  # noqa: ARG002
        features = self.extractor.extract(self.images[chunk.first : chunk.first + chunk.count])
        return Features(features.vectors, features.spatial).tensors()


class ReferenceStatistics(Stage):
    """`reference.safetensors`: moments of the features of all images of a data source, and some of the features."""

    name = "reference_statistics"
    version = 2
    uses = ("data", "feature.extractor")
    scratch = (BATCHES,)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        extractor, count = build_extractor(cfg), len(construct(cfg.data).load().images)
        # Batches of the extractor's own size, so that features are bit-identical to one call on all images.
        batches = chunks("real images", [0], count, extractor.batch)
        run_chunks(partial(self.describer, cfg), batches, out / BATCHES, shop, self.title)
        features = [Features(**tensors) for tensors in read_chunks(out / BATCHES)]
        statistics = RealStatistics.of_batches(features, extractor.checksum())
        statistics.save(out / "reference.safetensors")
        counts = {"images": statistics.moments.count, "vectors": len(statistics.vectors)}
        write_json(out / "metrics.json", counts | {"extractor": statistics.moments.extractor})

    def describer(self, cfg: DictConfig, shop: Workshop) -> DescribeRealImages:  # noqa: ARG002
        """The work of every device, which loads the images by itself and drops them afterwards."""
        return DescribeRealImages(build_extractor(cfg), construct(cfg.data).load().images)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {"extractor": build_extractor(cfg).checksum(), "data": construct(cfg.data).checksum()}


def build_extractor(cfg: DictConfig) -> FeatureExtractor:
    """The feature extractor that `cfg.feature.extractor` names."""
    return construct(cfg.feature.extractor)
