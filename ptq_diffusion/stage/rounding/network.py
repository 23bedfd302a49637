"""The quantized network with the integers that its rounding chose."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import InputObservations, QuantizedDenoiser, quantize
from ptq_diffusion.rounding.artefact import load_integers
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.plan import Plan, read_plan
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct


def rounded_network(
    cfg: DictConfig, inputs: Mapping[str, Path], shop: Workshop
) -> tuple[QuantizedDenoiser, InputObservations]:
    """The network on the CPU, rounded to nearest where there are no integers, and the observations of its inputs."""
    plan, observations = read_plan(inputs[Plan.name]), read_observations(cfg, inputs[Calibrate.name], shop.host)
    model, integers = shop.host.guided(cfg, inputs), None
    if Reconstruct.name in inputs:
        integers = load_integers(inputs[Reconstruct.name], model.fingerprint(), plan.fingerprint())
    weight, rank = construct(cfg.quantizer.weight), construct(cfg.quantizer.low_rank).rank
    bits = construct(cfg.quantizer.embedding).bits
    return quantize(model, plan, observations, weight, integers, rank, bits), observations
