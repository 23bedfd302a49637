"""Stage: the states x_t that float sampling passes through."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.engine.chunks import Chunk, ChunkWork, chunks, run_chunks
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.sampler import Table, sample


class RecordStates(ChunkWork):
    """Float sampling that keeps every state."""

    def __init__(self, model: Denoiser, steps: Table) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        walk = sample(lambda x, s: self.model.predict(x, s).m, self.steps, chunk.noise(self.model.shape), device=device)
        return {"states": torch.stack([visit.x_t[: chunk.count] for visit in walk])}


class Trajectories(ModelStage):
    """Calibration inputs: (steps, B, C, H, W) states in each chunk file."""

    name = "trajectories"
    version = 1
    uses = ("model", "sampler", "calibration", "micro_batch")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        chunks_to_do = chunks("calibration", [cfg.calibration.seed], cfg.calibration.images, cfg.micro_batch)
        run_chunks(partial(self.work, cfg), chunks_to_do, out / "chunks", shop, self.title)

    def work(self, cfg: DictConfig, shop: Workshop) -> RecordStates:
        """The work of every device."""
        model = shop.model(cfg)
        return RecordStates(model, shop.table(cfg, model))
