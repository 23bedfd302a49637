"""Stage: the damage that fewer bits in one layer at one step do to the final sample."""

from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.bitwidth.changes import Changes, rising_weights
from ptq_diffusion.bitwidth.sensitivity import Sensitivity
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.fit_setting import with_own_guidance
from ptq_diffusion.stage.planning.changes import MeasureChanges, offering_policy, read_changes
from ptq_diffusion.stage.planning.offer import with_offer
from ptq_diffusion.stage.prompts import EncodePrompts


class MeasureSensitivity(ModelStage):
    """`sensitivity.safetensors`: a `Sensitivity`, the mean squared change of x_0, to first order.

    A step's is its share of what all steps do together, or what it does alone: `sensitivity.steps`. Early steps
    count less: `sensitivity.first_step`. Neither is measured anew where these change.
    """

    name = "sensitivity"
    version = 4
    needs = (MeasureChanges, EncodePrompts)
    uses = ("model", "condition", "sampler", "bitwidth", "noise", "sensitivity")
    file = "sensitivity.safetensors"

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With the offer of the policy in its place and no guidance of its own: `with_offer`, `with_own_guidance`."""
        return with_offer(with_own_guidance(cfg))

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        model, policy = shop.guided(cfg, inputs), offering_policy(cfg)
        table, numbers = shop.table(cfg, model), cfg.sensitivity.images * torch.Size(model.shape).numel()
        folder = inputs[MeasureChanges.name]
        weight, activation = (_damage(read_changes(folder, name), cfg) / numbers for name in ("weight", "activation"))
        names = tuple(site.name for site in policy.roles.free(model.sites()))
        origin = model.fingerprint(), table.fingerprint()
        Sensitivity(names, policy.weights, policy.activations, weight, activation, *origin).save(out / self.file)


def _damage(changes: Changes, cfg: DictConfig) -> Tensor:
    damage = changes.together() if cfg.sensitivity.steps == "correlated" else changes.squares
    return damage * rising_weights(damage.shape[1], cfg.sensitivity.first_step)[:, None]
