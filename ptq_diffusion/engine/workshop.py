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
    """The table of the sampler that `cfg.sampler` names, for this model.

    Raises:
        ValueError: the table has a time that the model cannot be told.
    """
    table = construct(cfg.sampler).table(model.scheduler_config)
    if not model.answers_at_zero and (last := min(step.t for step in table)) <= 0:
        raise ValueError(
            f"expected times above 0, of which the network's Fourier embedding takes the logarithm, got t = {last:g}; "
            "set +sampler.scheduler.timestep_spacing=trailing"
        )
    return table


def build_observations(cfg: DictConfig, model: Denoiser) -> InputObservations:
    """Fresh observations of the inputs of every site, for quantizers of the kind that `cfg.quantizer` names."""
    return InputObservations(model.sites(), construct(cfg.quantizer.activation))


def build_quantized(folder: Path) -> QuantizedDenoiser:
    """The quantized network of an artefact of the stage `quantize`; the float model is not needed."""
    return load_quantized(folder)
