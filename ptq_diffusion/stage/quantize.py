"""Stage: the quantized network: packed integers, scales and settings by step."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct, plain
from ptq_diffusion.engine.models import of_folder
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import quantize, save_quantized
from ptq_diffusion.rounding.artefact import load_integers
from ptq_diffusion.stage.calibrate import Calibrate, read_observations
from ptq_diffusion.stage.plan import Plan, read_plan
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct


class Quantize(ModelStage):
    """The folder of a `QuantizedDenoiser`, which everything behind it loads in place of the float model."""

    name = "quantize"
    version = 1
    needs = (Calibrate, Plan, Reconstruct, EncodePrompts)
    uses = ("model", "condition", "quantizer")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        plan, observations = read_plan(inputs[Plan.name]), read_observations(cfg, inputs[Calibrate.name], shop.host)
        model, integers = shop.host.guided(cfg, inputs), None
        if Reconstruct.name in inputs:
            integers = load_integers(inputs[Reconstruct.name], model.fingerprint(), plan.fingerprint())
        weight, rank = construct(cfg.quantizer.weight), cfg.quantizer.low_rank.rank
        quantized = quantize(model, plan, observations, weight, integers, rank)
        save_quantized(quantized, out, None if of_folder(cfg) else plain(cfg.model))
