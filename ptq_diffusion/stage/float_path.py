"""Stage: the float network's outputs along float sampling, once for all that is fitted beside it."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors import safe_open
from torch import Tensor

from ptq_diffusion.engine.chunks import Chunk, ChunkWork, chunks, run_chunks
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.sampler import Step, Table, sample
from ptq_diffusion.stage.fit_setting import as_fitted, fit_model, fit_table
from ptq_diffusion.stage.prompts import EncodePrompts


class RecordOutputs(ChunkWork):
    """Float sampling that keeps every output, also of the padding: its readers ask other networks for whole chunks."""

    def __init__(self, model: Denoiser, steps: Table, conditions: ConditionSource) -> None:
        super().__init__()
        self.model, self.steps, self.conditions = model, steps, conditions

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:
        condition = chunk.condition(self.conditions, device)
        noise = chunk.noise(self.model.shape)
        learned, outputs = any(step.is_learned for step in self.steps), list[Tensor]()

        def predict(x_t: Tensor, step: Step) -> Tensor:
            output = self.model.predict(x_t, step, condition)
            answer = output.with_variance if learned else output.m
            outputs.append(answer.cpu())
            return answer

        for _ in sample(predict, self.steps, noise, device=device):
            pass
        return {"m": torch.stack(outputs)}


class FloatOutputs:
    """The outputs of every chunk, (steps, B, C, H, W), from which its states follow without the network.

    A learned variance is behind each, (steps, B, 2 C, H, W), as `sampler.sample` reads it.

    Args:
        folder: the artefact.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, chunk: Chunk, step: Step) -> Tensor:
        """The output at one step, (B, C or 2 C, H, W); no other is read."""
        with safe_open(self.folder / "chunks" / chunk.name, framework="pt") as file:
            return file.get_slice("m")[step.i]

    def rows(self, chunk: Chunk, rows: slice) -> Tensor:
        """The outputs of some samples of a chunk at all steps, (steps, rows, C or 2 C, H, W)."""
        with safe_open(self.folder / "chunks" / chunk.name, framework="pt") as file:
            return file.get_slice("m")[:, rows]

    def states(
        self, parent: Chunk, part: Chunk, table: Table, shape: tuple[int, ...], device: torch.device
    ) -> list[Tensor]:
        """The states of some samples of a chunk at every step and x_0 behind them, without the network.

        Args:
            parent: the chunk.
            part: its samples, `count` of them from `first` on.
            table: of the float path.
            shape: of a state, (C, H, W).
            device: where the states are to be.
        """
        first = part.first - parent.first
        outputs = self.rows(parent, slice(first, first + part.count)).to(device)
        noise = replace(part, size=part.count).noise(shape)
        visits = list(sample(lambda _, step: outputs[step.i], table, noise, device=device))
        return [*(visit.x_t for visit in visits), visits[-1].x_s]


class FloatPath(ModelStage):
    """A `FloatOutputs` of the images that corrections are fitted on, shared by all quantized networks.

    It takes images x steps x 4 C H W bytes of the store: 63 MB for 256 images of 3x32x32 and 20 steps.
    """

    name = "float_path"
    version = 1
    needs = (EncodePrompts,)
    uses = ("model", "condition", "sampler", "noise", "micro_batch")

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With the steps and the guidance of the fit in the places of those of the images: see `as_fitted`."""
        return as_fitted(cfg)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        run_chunks(partial(self.work, cfg, inputs), noise_chunks(cfg), out / "chunks", shop, self.title)

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> RecordOutputs:
        """The work of every device."""
        model = fit_model(cfg, inputs, shop)
        return RecordOutputs(model, fit_table(cfg, model, shop), shop.conditions(cfg, model, inputs))


def noise_chunks(cfg: DictConfig) -> list[Chunk]:
    """The images that corrections are fitted on."""
    return chunks("noise", [cfg.noise.seed], cfg.noise.images, cfg.micro_batch)
