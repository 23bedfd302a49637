"""Stages: images of the float, the quantized and the corrected model, from the same noise."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.engine.chunks import chunks, read_chunks, run_chunks
from ptq_diffusion.engine.models import decoder_checksum
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.drawing.images import DrawImages

IMAGES = ("model", "condition", "images", "seeds", "micro_batch")
SAMPLING = ("sampler", *IMAGES)


class Samples(ModelStage):
    """Images of a model: `images`, (B, C, H, W) uint8, in each chunk file."""

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return super().evidence(cfg) | {"decoder": decoder_checksum(cfg)}

    @abstractmethod
    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> DrawImages:
        """The work of every device."""

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        chunks_to_do = chunks("images", list(cfg.seeds), cfg.images, cfg.micro_batch)
        run_chunks(partial(self.work, cfg, inputs), chunks_to_do, out / "chunks", shop, self.title)


def image_batches(folder: Path, size: int) -> Iterator[Tensor]:
    """The images of a samples artefact in the order of seeds and samples; one batch and one chunk is in memory.

    Args:
        folder: the artefact.
        size: images of a batch, (size, C, H, W) uint8; the last one may have fewer.
    """
    rest: Tensor | None = None
    for chunk in read_chunks(folder / "chunks"):
        rest = chunk["images"] if rest is None else torch.cat([rest, chunk["images"]])
        while len(rest) > size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None:
        yield rest


def read_images(folder: Path) -> Tensor:
    """All images of a samples artefact, (seeds x images, C, H, W) uint8, in the order of seeds and samples."""
    return torch.cat([chunk["images"] for chunk in read_chunks(folder / "chunks")])
