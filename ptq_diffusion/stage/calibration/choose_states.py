"""Stage: the calibration set, which states of float sampling ranges are observed on and weights are rounded on."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.data import CalibrationSet, ChosenStates
from ptq_diffusion.engine.chunks import Chunk, ChunkWork, read_chunks, run_chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage, Need
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.sampler import Table
from ptq_diffusion.stage.calibration.bottleneck import step_features
from ptq_diffusion.stage.calibration.states import States
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.trajectories import Trajectories, calibration_chunks

SET = "set.json"
"""The file of the artefact."""
FEATURES = "features"
"""The tensor of a chunk's features, and the folder of all chunks while they are made."""


class DescribeStates(ChunkWork):
    """The features of the first images of a calibration.

    Args:
        model: the float model.
        table: of the sampler.
        states: of a chunk, with their steps and conditions.
        images: how many.
    """

    def __init__(self, model: Denoiser, table: Table, states: Callable[[Chunk], States], images: int) -> None:
        super().__init__()
        self.model, self.table, self.states, self.images = model, table, states, images

    def forward(self, chunk: Chunk, device: torch.device) -> dict[str, Tensor]:  # noqa: ARG002
        return {FEATURES: step_features(self.model, self.table, self.states(chunk), self.images - chunk.first)}


class ChooseStates(ModelStage):
    """`set.json`: the images of every step whose states are in the calibration set, with t, the seed and a digest."""

    name = "calibration_set"
    version = 1
    needs = (Trajectories, EncodePrompts)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch", "calibration_set")
    scratch = (FEATURES,)

    def inputs(self, cfg: DictConfig) -> Mapping[str, Need]:
        """Trajectories, and prompts where the model has some, of a set that reads features; of others nothing."""
        return super().inputs(cfg) if construct(cfg.calibration_set).feature_images else {}

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        rule, table = construct(cfg.calibration_set), shop.table(cfg, shop.model(cfg))
        images, seed, features = cfg.calibration.images, cfg.calibration.seed, None
        assert isinstance(rule, CalibrationSet)
        if rule.feature_images:
            first = [chunk for chunk in calibration_chunks(cfg) if chunk.first < rule.feature_images]
            run_chunks(partial(self.work, cfg, inputs), first, out / FEATURES, shop, self.title)
            features = torch.cat([part[FEATURES] for part in read_chunks(out / FEATURES)], dim=1)
        chosen = rule.states(len(table), images, seed, features)
        chosen.require(len(table), images)
        chosen.save(out / SET, seed, [step.t for step in table])

    def work(self, cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop) -> DescribeStates:
        """The work of every device: the features of a chunk's images at all steps."""
        model, rule = shop.guided(cfg, inputs), construct(cfg.calibration_set)
        table, conditions = shop.table(cfg, model), shop.conditions(cfg, model, inputs)
        every = ChosenStates.every(len(table), cfg.calibration.images)

        def states(chunk: Chunk) -> States:
            return States(inputs[Trajectories.name] / "chunks", [chunk], every, conditions)

        return DescribeStates(model, table, states, rule.feature_images)


def read_set(folder: Path) -> ChosenStates:
    """The calibration set of an artefact."""
    return ChosenStates.load(folder / SET)
