"""Stage: the states x_t that float sampling passes through."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.engine.chunks import Chunk, ChunkWork, chunks, run_chunks
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.sampler import Table, sample
from ptq_diffusion.stage.prompts import EncodePrompts


class RecordStates(ChunkWork):
    """Float sampling that keeps every state."""

    def __init__(self, model: Denoiser, steps: Table, conditions: ConditionSource) -> None:
        super().__init__()
        self.model, self.steps, self.conditions = model, steps, conditions

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        condition = chunk.condition(self.conditions, device)
        noise = chunk.noise(self.model.shape)
        walk = sample(lambda x, s: self.model.predict(x, s, condition).with_variance, self.steps, noise, device=device)
        return {"states": torch.stack([visit.x_t[: chunk.count] for visit in walk])}


class Trajectories(ModelStage):
    """Calibration inputs: (steps, B, C, H, W) states in each chunk file."""

    name = "trajectories"
    version = 1
    needs = (EncodePrompts,)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        run_chunks(partial(self.work, cfg, inputs), calibration_chunks(cfg), out / "chunks", shop, self.title)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> RecordStates:
        """The work of every device."""
        model = shop.guided(cfg, inputs)
        return RecordStates(model, shop.table(cfg, model), shop.conditions(cfg, model, inputs))


def calibration_chunks(cfg: DictConfig) -> list[Chunk]:
    """The samples that ranges come from."""
    return chunks("calibration", [cfg.calibration.seed], cfg.calibration.images, cfg.micro_batch)
