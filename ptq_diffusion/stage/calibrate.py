"""Stage: the distribution of every layer's input and of attention's operands over float sampling, for all bitwidths."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import lightning as L
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ptq_diffusion.engine.chunks import read_chunks
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import InputObservations
from ptq_diffusion.sampler import Step
from ptq_diffusion.stage.trajectories import Trajectories

OBSERVATIONS = "inputs.safetensors"
"""The file of the artefact."""


class States(IterableDataset[tuple[int, Tensor]]):
    """The pairs (i, x_t) of a step's index and its states, of all chunks; one chunk is in memory at a time."""

    def __init__(self, folder: Path, steps: Sequence[Step]) -> None:
        self.folder, self.table = folder, steps

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.safetensors"))) * len(self.table)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for chunk in read_chunks(self.folder):
            yield from enumerate(chunk["states"])


class Calibration(L.LightningModule):
    """Float forwards under observation."""

    def __init__(self, model: Denoiser, observations: InputObservations, table: Sequence[Step]) -> None:
        super().__init__()
        self.model, self.observations, self.table = model, observations, table

    def predict_step(self, batch: tuple[int, Tensor], _: int) -> None:
        i, x_t = batch
        with self.observations.observing(self.model.network):
            self.model.predict(x_t, self.table[i])


class Calibrate(ModelStage):
    """`inputs.safetensors`: the observations of an `InputObservations`."""

    name = "calibrate"
    version = 3
    needs = (Trajectories,)
    uses = ("model", "sampler", "quantizer.activation")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        model = shop.model(cfg)
        observations = shop.observations(cfg, model)
        table = shop.table(cfg, model)
        states = States(inputs[Trajectories.name] / "chunks", table)
        trainer = shop.runtime.trainer(out, self.title)
        calibration = Calibration(model, observations, table)
        trainer.predict(calibration, DataLoader(states, batch_size=None), return_predictions=False)
        observations.save(out / OBSERVATIONS)


def read_observations(cfg: DictConfig, folder: Path, shop: Workshop) -> InputObservations:
    """The observations of an artefact, on the CPU."""
    observations = shop.observations(cfg, shop.model(cfg))
    observations.restore(folder / OBSERVATIONS)
    return observations
