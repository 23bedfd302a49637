"""Stage: the distribution of every layer's input and of attention's operands over float sampling, for all bitwidths."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.network import InputObservations
from ptq_diffusion.network.equalising import InputMaxima
from ptq_diffusion.sampler import Step
from ptq_diffusion.stage.calibration.choose_states import ChooseStates, read_set
from ptq_diffusion.stage.calibration.states import States
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.trajectories import Trajectories, calibration_chunks

OBSERVATIONS = "inputs.safetensors"
"""The file of the artefact."""
RANGES = ("quantizer.activation", "quantizer.steps", "quantizer.equalisation")
"""Options of quantizers that say which ranges are observed."""


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
    needs = (Trajectories, ChooseStates, EncodePrompts)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch", *RANGES)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        model = shop.guided(cfg, inputs)
        table, conditions = shop.table(cfg, model), shop.conditions(cfg, model, inputs)
        groups = construct(cfg.quantizer.steps)
        observations = shop.observations(cfg, model, groups, len(table))
        chosen = read_set(inputs[ChooseStates.name])
        observations.require(chosen.counts)
        states = States(inputs[Trajectories.name] / "chunks", calibration_chunks(cfg), chosen, conditions)

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
