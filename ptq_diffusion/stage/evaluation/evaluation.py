"""The features and scores of stored images, batch by batch on any device, and those of all batches together."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ptq_diffusion.engine.chunks import Chunk, ChunkWork
from ptq_diffusion.metric.gathering import Described, Gathering, below
from ptq_diffusion.metric.incumbents import Incumbents, image_ratios
from ptq_diffusion.metric.metric import FLOAT
from ptq_diffusion.metric.real_statistics import RealStatistics
from ptq_diffusion.stage.evaluation.stored_images import PairedImages

RATIOS = "ratios"
"""The first part of the names of the ratios that torchmetrics reports."""


class DescribeImages(ChunkWork):
    """The features and scores of the images of all variants, row i of each from the same noise.

    Args:
        gathering: has the extractor, the metrics and the prompts.
        images: of all variants.
    """

    def __init__(self, gathering: Gathering, images: PairedImages) -> None:
        super().__init__()
        self.extractor, self.gathering, self.images = gathering.extractor, gathering, images

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        batch = {variant: images.to(device) for variant, images in self.images.batch(chunk).items()}
        ratios = {f"{RATIOS}/{variant}": image_ratios(images, batch[FLOAT]) for variant, images in batch.items()}
        return self.gathering.described(batch, chunk.first).tensors() | ratios


def gather(
    gathering: Gathering, batches: Iterable[Mapping[str, Tensor]], variants: Sequence[str], real: RealStatistics | None
) -> Mapping[str, float]:
    """Take in what `DescribeImages` left of all batches; torchmetrics' numbers as VARIANT/METRIC.

    Args:
        gathering: receives the batches.
        batches: in their order.
        variants: in theirs.
        real: statistics of the real images; None where the float images stand in their place.
    """
    moments = None if real is None else real.moments
    incumbents = {variant: Incumbents(gathering.extractor.num_features, moments) for variant in variants}
    for tensors in batches:
        batch, ratios = Described.of_tensors(tensors, variants), below(f"{RATIOS}/", tensors)
        gathering.take(batch)
        for variant, incumbent in incumbents.items():
            incumbent.update(batch.features[variant].vectors, batch.features[FLOAT].vectors, ratios[variant])
    return {
        f"{variant}/{name}": number
        for variant, incumbent in incumbents.items()
        for name, number in incumbent.compute().items()
    }
