"""Objects that several stages build from their configuration in the same way."""

from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import NetworkQuantizers, quantize
from ptq_diffusion.sampler import Table


def build_model(cfg: DictConfig) -> Denoiser:
    """The float model that `cfg.model` names."""
    return construct(cfg.model)


def build_steps(cfg: DictConfig, model: Denoiser) -> Table:
    """The table of the sampler that `cfg.sampler` names, for this model."""
    return construct(cfg.sampler).table(model.scheduler_config)


def build_quantizers(cfg: DictConfig, model: Denoiser) -> NetworkQuantizers:
    """Fresh quantizers for every site that the bitwidth policy gives fewer than float bits."""
    sites = model.sites()
    plan = construct(cfg.bitwidth).plan(sites)
    return NetworkQuantizers(sites, plan, construct(cfg.quantizer.weight), construct(cfg.quantizer.activation))


def build_calibrated(cfg: DictConfig, model: Denoiser, calibrated: Path) -> NetworkQuantizers:
    """The quantizers with the ranges of the calibration artefact, frozen."""
    quantizers = build_quantizers(cfg, model)
    quantizers.restore(calibrated / "quantizers.safetensors")
    return quantizers


def build_quantized(cfg: DictConfig, model: Denoiser, calibrated: Path) -> Denoiser:
    """The model around a quantized copy of its network, with the ranges of the calibration artefact."""
    return model.with_network(quantize(model.network, build_calibrated(cfg, model, calibrated)))
