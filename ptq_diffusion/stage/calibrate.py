"""Stage: the distribution of every layer's input and of attention's operands over float sampling, for all bitwidths."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lightning as L
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.conditions import ConditionSource
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.network import InputObservations
from ptq_diffusion.network.equalising import InputMaxima
from ptq_diffusion.sampler import Step
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.trajectories import Trajectories, calibration_chunks

OBSERVATIONS = "inputs.safetensors"
"""The file of the artefact."""
RANGES = ("quantizer.activation", "quantizer.steps", "quantizer.equalisation")
"""Options of quantizers that say which ranges are observed."""


class States(IterableDataset[tuple[int, Tensor, Condition | None]]):
    """A step's index, its states and their condition, of all steps and chunks; one chunk is in memory at a time.

    Args:
        folder: of the chunks' files.
        chunks: in their order.
        steps: how many each file holds states of.
        conditions: of the samples.
    """

    def __init__(self, folder: Path, chunks: Sequence[Chunk], steps: int, conditions: ConditionSource) -> None:
        self.folder, self.chunks, self.steps, self.conditions = folder, chunks, steps, conditions

    def __len__(self) -> int:
        return len(self.chunks) * self.steps

    def __iter__(self) -> Iterator[tuple[int, Tensor, Condition | None]]:
        for chunk in self.chunks:
            condition = rows_of(chunk.condition(self.conditions), slice(chunk.count))
            for i, x_t in enumerate(load_file(self.folder / chunk.name)["states"]):
                yield i, x_t, condition


class Calibration(L.LightningModule):
    """Float forwards under observation."""

    def __init__(self, model: Denoiser, observations: InputObservations | InputMaxima, table: Sequence[Step]) -> None:
        super().__init__()
        self.model, self.observations, self.table = model, observations, table

    def predict_step(self, batch: tuple[int, Tensor, Condition | None], _: int) -> None:
        i, x_t, condition = batch
        with self.observations.observing(self.model.network, i):
            self.model.predict(x_t, self.table[i], condition)


class Calibrate(ModelStage):
    """`inputs.safetensors`: the observations of an `InputObservations`."""

    name = "calibrate"
    version = 4
    needs = (Trajectories, EncodePrompts)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch", *RANGES)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        model = shop.guided(cfg, inputs)
        table, conditions = shop.table(cfg, model), shop.conditions(cfg, model, inputs)
        groups = construct(cfg.quantizer.steps)
        observations = shop.observations(cfg, model, groups, len(table))
        states = States(inputs[Trajectories.name] / "chunks", calibration_chunks(cfg), len(table), conditions)

        def observe(observer: InputObservations | InputMaxima) -> None:
            trainer, calibration = shop.runtime.trainer(out, self.title), Calibration(model, observer, table)
            trainer.predict(calibration, DataLoader(states, batch_size=None), return_predictions=False)

        rule = construct(cfg.quantizer.equalisation)
        if rule.equalises:
            # Grids are of inputs over the factors, so that these come from a pass of their own.
            maxima = InputMaxima(model.sites())
            observe(maxima)
            observations.equalise(maxima.factors(model.network, rule))
        observe(observations)
        observations.divide(groups)
        observations.save(out / OBSERVATIONS)


def read_observations(cfg: DictConfig, folder: Path, shop: Workshop) -> InputObservations:
    """The observations of an artefact, on the CPU."""
    observations = shop.observations(cfg, shop.model(cfg))
    observations.restore(folder / OBSERVATIONS)
    return observations
