"""Stage: the distribution of every layer's input and of attention's operands over float sampling, for all bitwidths."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.engine.chunks import Chunk, Statistics, run_statistics
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
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


class Observe(Statistics):
    """Float forwards under observation.

    Args:
        model: the float model.
        observer: sees the inputs.
        table: of the sampler.
        states: of a chunk, with their steps and conditions.
    """

    def __init__(
        self,
        model: Denoiser,
        observer: InputObservations | InputMaxima,
        table: Sequence[Step],
        states: Callable[[Chunk], States],
    ) -> None:
        super().__init__()
        self.model, self.observer, self.table, self.states = model, observer, table, states

    def forward(self, chunk: Chunk, device: torch.device) -> None:
        for i, x_t, condition in self.states(chunk):
            on_device = None if condition is None else condition.to(device)
            with self.observer.observing(self.model.network, i):
                self.model.predict(x_t.to(device), self.table[i], on_device)

    def tensors(self) -> dict[str, Tensor]:
        return self.observer.tensors()


class Calibrate(ModelStage):
    """`inputs.safetensors`: the observations of an `InputObservations`."""

    name = "calibrate"
    version = 4
    needs = (Trajectories, ChooseStates, EncodePrompts)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch", *RANGES)
    scratch = ("parts",)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        self._observations(cfg, inputs, shop).require(read_set(inputs[ChooseStates.name]).counts)
        parts, rule = calibration_chunks(cfg), construct(cfg.quantizer.equalisation)
        factors = out / "parts" / "factors.safetensors" if rule.equalises else None
        if factors is not None:
            # Grids are of inputs over the factors, so that these come from a pass of their own.
            model = shop.guided(cfg, inputs)
            maxima = InputMaxima(model.sites())
            work = partial(self.maxima, cfg, inputs)
            maxima.join(run_statistics(work, parts, out / "parts" / "maxima", shop, self.title))
            write_tensors(factors, maxima.factors(model.network, rule))
        work = partial(self.ranges, cfg, inputs, factors)
        shares = run_statistics(work, parts, out / "parts" / "ranges", shop, self.title)
        observations = self._observations(cfg, inputs, shop, factors)
        observations.join(shares)
        observations.divide(construct(cfg.quantizer.steps))
        observations.save(out / OBSERVATIONS)

    def maxima(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> Observe:
        """The work of every device in a first pass: the largest magnitude of every input channel."""
        return self._observe(InputMaxima(shop.guided(cfg, inputs).sites()), cfg, inputs, shop)

    def ranges(self, cfg: DictConfig, inputs: Mapping[str, Path], factors: Path | None, shop: Workshop) -> Observe:
        """The work of every device: the distributions of inputs, divided by the factors that a file holds, if any."""
        return self._observe(self._observations(cfg, inputs, shop, factors), cfg, inputs, shop)

    def _observe(
        self, observer: InputObservations | InputMaxima, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop
    ) -> Observe:
        model = shop.guided(cfg, inputs)
        chosen, conditions = read_set(inputs[ChooseStates.name]), shop.conditions(cfg, model, inputs)

        def states(chunk: Chunk) -> States:
            return States(inputs[Trajectories.name] / "chunks", [chunk], chosen, conditions)

        return Observe(model, observer, shop.table(cfg, model), states)

    @staticmethod
    def _observations(
        cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop, factors: Path | None = None
    ) -> InputObservations:
        """Observations of nothing yet."""
        model = shop.guided(cfg, inputs)
        observations = shop.observations(cfg, model, construct(cfg.quantizer.steps), len(shop.table(cfg, model)))
        if factors is not None:
            observations.equalise(load_file(factors))
        return observations


def read_observations(cfg: DictConfig, folder: Path, shop: Workshop) -> InputObservations:
    """The observations of an artefact, on the CPU."""
    observations = shop.observations(cfg, shop.model(cfg))
    observations.restore(folder / OBSERVATIONS)
    return observations
