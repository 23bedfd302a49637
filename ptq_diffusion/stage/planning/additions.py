"""Stages: the cost of a correction and of a network outside of its plan of bits, for a budget that counts it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.artefact.files import read_json, write_json
from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.bitwidth.cost import CostOutsidePlan
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.bitwidth.under_budget import UnderBudget
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser, Role
from ptq_diffusion.network.embedding import embeddings
from ptq_diffusion.numeric.grid import FLOAT_BITS
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


class OutsidePlan(ModelStage):
    """`outside_plan.json`: the `CostOutsidePlan` of the network at most, from its options."""

    name = "outside_plan"
    version = 1
    uses = ("model", "quantizer.equalisation", "quantizer.low_rank", "quantizer.embedding")
    file = "outside_plan.json"

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        """Whether a budget counts layers that are equalised, parts of low rank or tables of embeddings in integers."""
        return "saving" in cfg.bitwidth and (computes_outside_plan(cfg) or saves_embedding_bytes(cfg))

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With tables of embeddings in float where no budget counts bytes."""
        if saves_embedding_bytes(cfg):
            return cfg
        other = cfg.copy()
        other.quantizer.embedding.bits = FLOAT_BITS
        return other

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        outside_plan = cost_outside_plan(cfg, shop.model(cfg))
        write_json(out / self.file, asdict(outside_plan) | {"ranks": dict(outside_plan.ranks)})


def computes_outside_plan(cfg: DictConfig) -> bool:
    """Whether layers compute anything but the products of their quantized operands."""
    return bool(construct(cfg.quantizer.equalisation).equalises or construct(cfg.quantizer.low_rank).rank)


def saves_embedding_bytes(cfg: DictConfig) -> bool:
    """Whether tables of embeddings take fewer bytes than in float, and a budget counts bytes."""
    return cfg.bitwidth.get("bytes") is not None and construct(cfg.quantizer.embedding).bits != FLOAT_BITS


def cost_outside_plan(cfg: DictConfig, model: Denoiser) -> CostOutsidePlan:
    """The cost of a network outside of its plan, at most.

    A layer whose input is float at every step has no factors in the end.
    """
    layers, rank = [site for site in model.sites() if site.weighted], construct(cfg.quantizer.low_rank).rank
    equalised = [site.name for site in layers] if construct(cfg.quantizer.equalisation).equalises else []
    ranks = {site.name: rank for site in layers if rank and site.role is Role.INNER}
    bits = construct(cfg.quantizer.embedding).bits
    if bits == FLOAT_BITS:
        return CostOutsidePlan(equalised, ranks)
    return CostOutsidePlan(
        equalised, ranks, sum(table.weight.numel() for table in embeddings(model.network).values()), bits
    )


def read_outside_plan(folder: Path) -> CostOutsidePlan:
    """The cost of a network outside of its plan, of an artefact."""
    return CostOutsidePlan(**read_json(folder / OutsidePlan.file))


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
    """The policy of a whole configuration, which knows the operations that it counts beside the plan's.

    Raises:
        ValueError: it counts them, and they are not known before the correction is fitted.
    """
    policy = construct(cfg.bitwidth)
    if isinstance(policy, UnderBudget):
        policy = policy.counting_outside_plan(cost_outside_plan(cfg, model))
    if isinstance(policy, UnderBudget) and policy.count_correction:
        return policy.behind(additions_of(cfg, model, table))
    assert isinstance(policy, BitwidthPolicy)
    return policy
