"""Objects that several stages build from their configuration in the same way."""

from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import InputObservations, QuantizedDenoiser, load_quantized
from ptq_diffusion.sampler import Table


def build_model(cfg: DictConfig) -> Denoiser:
    """The float model that `cfg.model` names."""
    return construct(cfg.model)


def build_steps(cfg: DictConfig, model: Denoiser) -> Table:
    """The table of the sampler that `cfg.sampler` names, for this model."""
    return construct(cfg.sampler).table(model.scheduler_config)


def build_observations(cfg: DictConfig, model: Denoiser) -> InputObservations:
    """Fresh observations of the inputs of every site, for quantizers of the kind that `cfg.quantizer` names."""
    return InputObservations(model.sites(), construct(cfg.quantizer.activation))


def build_quantized(folder: Path) -> QuantizedDenoiser:
    """The quantized network of an artefact of the stage `quantize`; the float model is not needed."""
    return load_quantized(folder)
