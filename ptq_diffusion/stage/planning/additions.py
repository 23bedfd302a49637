"""Stages: the operations that layers and a correction will add, for a plan whose budget counts them."""

from collections.abc import Iterable, Mapping
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
from ptq_diffusion.model import Denoiser, Role, Site
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
    """`beside.json`: what layers compute and store beside their quantized operands, from the quantizers' options."""

    name = "beside"
    version = 1
    uses = ("model", "quantizer.equalisation", "quantizer.low_rank")
    file = "beside.json"

    @classmethod
    def serves(cls, cfg: DictConfig) -> bool:
        """Whether the bits are chosen under a budget, of layers that are equalised or have parts of low rank."""
        return "saving" in cfg.bitwidth and computes_beside(cfg)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        beside = beside_of(cfg, shop.model(cfg).sites())
        write_json(out / self.file, {"equalised": list(beside.equalised), "ranks": dict(beside.ranks)})


def computes_beside(cfg: DictConfig) -> bool:
    """Whether layers compute anything beside the products of their quantized operands."""
    return bool(construct(cfg.quantizer.equalisation).equalises or construct(cfg.quantizer.low_rank).rank)


def beside_of(cfg: DictConfig, sites: Iterable[Site]) -> Beside:
    """The work and the numbers of layers beside their quantized operands, at most.

    A layer whose input is float at every step, or that no forward calls, has no factors in the end.
    """
    layers, rank = [site for site in sites if site.weighted], construct(cfg.quantizer.low_rank).rank
    equalises = construct(cfg.quantizer.equalisation).equalises
    inner = [site.name for site in layers if rank and site.role is Role.INNER]
    return Beside([site.name for site in layers] if equalises else [], dict.fromkeys(inner, rank))


def read_beside(folder: Path) -> Beside:
    """The work and the numbers of layers beside their quantized operands, of an artefact."""
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
    if isinstance(policy, UnderBudget) and computes_beside(cfg):
        policy = policy.with_layers(beside_of(cfg, model.sites()))
    if isinstance(policy, UnderBudget) and policy.count_correction:
        return policy.behind(additions_of(cfg, model, table))
    assert isinstance(policy, BitwidthPolicy)
    return policy
