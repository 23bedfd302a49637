"""Objects that several stages build from their configuration in the same way."""

from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.bitwidth.evidence import Evidence
from ptq_diffusion.bitwidth.policy import BitwidthPolicy
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import Denoiser
from ptq_diffusion.model.architecture import Architecture
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.network import NetworkQuantizers, quantize
from ptq_diffusion.sampler import Table


def build_model(cfg: DictConfig) -> Denoiser:
    """The float model that `cfg.model` names."""
    return construct(cfg.model)


def build_steps(cfg: DictConfig, model: Denoiser) -> Table:
    """The table of the sampler that `cfg.sampler` names, for this model."""
    return construct(cfg.sampler).table(model.scheduler_config)


def build_quantizers(cfg: DictConfig, model: Denoiser) -> NetworkQuantizers:
    """Fresh quantizers for every site that the bitwidth policy gives fewer than float bits.

    Raises:
        ValueError: the policy cannot plan for this network and table, or reads a measurement.
    """
    sites = tuple(model.sites())
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    plan = _build_plan(cfg, model, Architecture(sites, model.attention_macs(), parameters))
    return NetworkQuantizers(sites, plan, construct(cfg.quantizer.weight), construct(cfg.quantizer.activation))


def _build_plan(cfg: DictConfig, model: Denoiser, architecture: Architecture) -> BitwidthPlan:
    policy: BitwidthPolicy = construct(cfg.bitwidth)
    steps = build_steps(cfg, model) if "sampler" in cfg else ()
    policy.check(architecture, steps)
    if policy.reads is not Evidence.NOTHING:
        raise ValueError(
            f"expected a bitwidth policy that reads no measurement, got {type(policy).__name__}, which reads "
            f"{policy.reads.value}, and no stage measures it; choose another, such as bitwidth=w4a8"
        )
    return policy.plan(architecture, steps, None)


def build_calibrated(cfg: DictConfig, model: Denoiser, calibrated: Path) -> NetworkQuantizers:
    """The quantizers with the ranges of the calibration artefact, frozen."""
    quantizers = build_quantizers(cfg, model)
    quantizers.restore(calibrated / "quantizers.safetensors")
    return quantizers


def build_quantized(cfg: DictConfig, model: Denoiser, calibrated: Path) -> Denoiser:
    """The model around a quantized copy of its network, with the ranges of the calibration artefact."""
    return model.with_network(quantize(model.network, build_calibrated(cfg, model, calibrated)))
