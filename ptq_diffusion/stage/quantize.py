"""Stage: the quantized network: packed integers, scales and settings by step."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.engine.factory import plain
from ptq_diffusion.engine.models import of_folder
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.network import save_quantized
from ptq_diffusion.rounding.artefact import load_scales
from ptq_diffusion.rounding.scales import with_scales
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.plan import Plan
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.rounding.learn_scales import LearnScales
from ptq_diffusion.stage.rounding.network import rounded_network
from ptq_diffusion.stage.rounding.reconstruct import Reconstruct


class Quantize(ModelStage):
    """The folder of a `QuantizedDenoiser`, which everything behind it loads in place of the float model."""

    name = "quantize"
    version = 1
    needs = (Calibrate, Plan, Reconstruct, LearnScales, EncodePrompts)
    uses = ("model", "condition", "quantizer")

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        quantized, _ = rounded_network(cfg, inputs, shop)
        if LearnScales.name in inputs:
            settings, model, plan = quantized.settings, shop.host.guided(cfg, inputs), quantized.plan
            scales = load_scales(inputs[LearnScales.name], settings, model.fingerprint(), plan.fingerprint())
            quantized = quantized.with_settings(with_scales(settings, scales))
        save_quantized(quantized, out, None if of_folder(cfg) else plain(cfg.model))
