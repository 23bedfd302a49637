"""Stage: the calibration set, which states of float sampling ranges are observed on and weights are rounded on."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.data import CalibrationSet, ChosenStates
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage, Need
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.calibration.bottleneck import step_features
from ptq_diffusion.stage.calibration.states import States
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.trajectories import Trajectories, calibration_chunks

SET = "set.json"
"""The file of the artefact."""


class ChooseStates(ModelStage):
    """`set.json`: the images of every step whose states are in the calibration set, with t, the seed and a digest."""

    name = "calibration_set"
    version = 1
    needs = (Trajectories, EncodePrompts)
    uses = ("model", "condition", "sampler", "calibration", "micro_batch", "calibration_set")

    def inputs(self, cfg: DictConfig) -> Mapping[str, Need]:
        """Trajectories, and prompts where the model has some, of a set that reads features; of others nothing."""
        return super().inputs(cfg) if construct(cfg.calibration_set).feature_images else {}

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        rule, table = construct(cfg.calibration_set), shop.table(cfg, shop.model(cfg))
        images, seed, features = cfg.calibration.images, cfg.calibration.seed, None
        assert isinstance(rule, CalibrationSet)
        if rule.feature_images:
            model = shop.guided(cfg, inputs)
            every = ChosenStates.every(len(table), images)
            conditions = shop.conditions(cfg, model, inputs)
            states = States(inputs[Trajectories.name] / "chunks", calibration_chunks(cfg), every, conditions)
            features = step_features(model, table, states, rule.feature_images)
        chosen = rule.states(len(table), images, seed, features)
        chosen.require(len(table), images)
        chosen.save(out / SET, seed, [step.t for step in table])


def read_set(folder: Path) -> ChosenStates:
    """The calibration set of an artefact."""
    return ChosenStates.load(folder / SET)
