"""Stage: the operations that a correction will add, for a plan whose budget counts them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.artefact.files import read_json, write_json
from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser
from ptq_diffusion.sampler import Table


class CorrectionAdditions(ModelStage):
    """`additions.json`: the `Additions` that the correction has at most, from its configuration."""

    name = "additions"
    version = 1
    uses = ("model", "sampler", "correction")
    file = "additions.json"

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        """Whether the bits are chosen under a budget that counts the correction."""
        # Read and not built, as a policy of another kind is refused by its name later.
        return bool(cfg.bitwidth.get("count_correction", False))

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        model = shop.model(cfg)
        write_json(out / self.file, asdict(additions_of(cfg, model, shop.table(cfg, model))))


def additions_of(cfg: DictConfig, model: Denoiser, table: Table) -> Additions:
    """The operations that the correction of a configuration adds at most.

    Raises:
        ValueError: they are not known before it is fitted.
    """
    additions: Additions = construct(cfg.correction).additions(table, model.shape, model.patch_size)
    return additions


def read_additions(folder: Path) -> Additions:
    """The additions of an artefact."""
    return Additions(**read_json(folder / CorrectionAdditions.file))


def policy_of(cfg: DictConfig, model: Denoiser, table: Table) -> BitwidthPolicy:
    """The policy of a whole configuration, which knows the correction's operations where it counts them.

    Raises:
        ValueError: it counts them, and they are not known before the correction is fitted.
    """
    policy = construct(cfg.bitwidth)
    if isinstance(policy, UnderBudget) and policy.count_correction:
        return policy.behind(additions_of(cfg, model, table))
    assert isinstance(policy, BitwidthPolicy)
    return policy
