"""Stages: the operations that layers and a correction will add, for a plan whose budget counts them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.artefact.files import read_json, write_json
from ptq_diffusion.bitwidth.additions import Additions
from ptq_diffusion.bitwidth.cost import Beside
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


class LayerAdditions(ModelStage):
    """`beside.json`: what the network computes and stores beside its layers' quantized operands, from the options."""

    name = "beside"
    version = 1
    uses = ("model", "quantizer.equalisation", "quantizer.low_rank", "quantizer.embedding")
    file = "beside.json"

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        """Whether a budget counts layers that are equalised, parts of low rank or tables of embeddings in integers."""
        return "saving" in cfg.bitwidth and (computes_beside(cfg) or spares_bytes(cfg))

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With tables of embeddings in float where no budget counts bytes."""
        if spares_bytes(cfg):
            return cfg
        other = cfg.copy()
        other.quantizer.embedding.bits = FLOAT_BITS
        return other

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        beside = beside_of(cfg, shop.model(cfg))
        write_json(out / self.file, asdict(beside) | {"ranks": dict(beside.ranks)})


def computes_beside(cfg: DictConfig) -> bool:
    """Whether layers compute anything beside the products of their quantized operands."""
    return bool(construct(cfg.quantizer.equalisation).equalises or construct(cfg.quantizer.low_rank).rank)


def spares_bytes(cfg: DictConfig) -> bool:
    """Whether tables of embeddings take fewer bytes than in float, and a budget counts bytes."""
    return cfg.bitwidth.get("bytes") is not None and construct(cfg.quantizer.embedding).bits != FLOAT_BITS


def beside_of(cfg: DictConfig, model: Denoiser) -> Beside:
    """The work and the numbers of a network beside its layers' quantized operands, at most.

    A layer whose input is float at every step, or that no forward calls, has no factors in the end.
    """
    layers, rank = [site for site in model.sites() if site.weighted], construct(cfg.quantizer.low_rank).rank
    equalised = [site.name for site in layers] if construct(cfg.quantizer.equalisation).equalises else []
    ranks = {site.name: rank for site in layers if rank and site.role is Role.INNER}
    bits = construct(cfg.quantizer.embedding).bits
    if bits == FLOAT_BITS:
        return Beside(equalised, ranks)
    return Beside(equalised, ranks, sum(table.weight.numel() for table in embeddings(model.network).values()), bits)


def read_beside(folder: Path) -> Beside:
    """The work and the numbers of a network beside its layers' quantized operands, of an artefact."""
    return Beside(**read_json(folder / LayerAdditions.file))


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
        policy = policy.with_layers(beside_of(cfg, model))
    if isinstance(policy, UnderBudget) and policy.count_correction:
        return policy.behind(additions_of(cfg, model, table))
    assert isinstance(policy, BitwidthPolicy)
    return policy
