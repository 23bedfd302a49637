"""Stage: the correction, fitted to moments of the noise, or step by step on images that walk along a path."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from ptq_diffusion.correction import Auto, FittedCorrection, MomentCorrection, NoiseStatistics, PathCorrection
from ptq_diffusion.correction.diagnostics import fit_diagnosed
from ptq_diffusion.correction.method.auto import FLOAT
from ptq_diffusion.engine.chunks import chunks, read_chunks, run_chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import ModelStage, Need
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.draw_corrected import draw_corrected
from ptq_diffusion.stage.draw_images import DrawImages
from ptq_diffusion.stage.fit_table import carried, fit_table
from ptq_diffusion.stage.float_path import FloatOutputs, FloatPath, noise_chunks
from ptq_diffusion.stage.noise import Noise, noise_fingerprint
from ptq_diffusion.stage.path_fit import Walk
from ptq_diffusion.stage.quantize import Quantize


class Fit(ModelStage):
    """The folder of a `FittedCorrection`; of a chosen one, with its `choice.json`."""

    name = "fit"
    version = 1
    needs = (Quantize, FloatPath, Noise)
    uses = ("model", "sampler", "noise", "micro_batch", "correction")
    scratch = ("walk", "trial")

    def inputs(self, cfg: DictConfig) -> Mapping[str, Need]:
        """Moments need the noise, a choice every candidate fitted, a walk the float path and the quantized network."""
        correction = construct(cfg.correction)
        if isinstance(correction, MomentCorrection):
            return {need.name: Need(need, cfg) for need in (Quantize, Noise)}
        quantized = {Quantize.name: Need(Quantize, cfg)}
        if isinstance(correction, Auto):
            return quantized | {
                name: Need(Fit, with_candidate(cfg, name), f"leave it out with ~correction.candidates.{name}")
                for name in correction.candidates
            }
        return quantized | {FloatPath.name: Need(FloatPath, cfg)}

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        correction = construct(cfg.correction)
        judged = {"judge": correction.judge.checksum()} if isinstance(correction, Auto) else {}
        return super().evidence(cfg) | judged

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        correction = construct(cfg.correction)
        if isinstance(correction, MomentCorrection):
            self._from_moments(correction, cfg, inputs, out, shop)
        elif isinstance(correction, PathCorrection):
            walk = partial(self.walk, cfg, inputs, out / "walk", shop)
            shop.runtime.launch(partial(follow, walk=walk, cfg=cfg, out=out, shop=shop), tasks=1)
        else:
            self._choose(correction, cfg, inputs, out, shop)

    def _from_moments(
        self, correction: MomentCorrection, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop
    ) -> None:
        model = shop.model(cfg)
        quantized, steps = shop.quantized(inputs[Quantize.name]), fit_table(cfg, model, shop)
        statistics = NoiseStatistics.load(inputs[Noise.name] / "noise.safetensors")
        statistics.require(noise_fingerprint(quantized, steps))
        carried(fit_diagnosed(correction, statistics, steps), cfg, shop).save(out)

    def walk(self, cfg: DictConfig, inputs: Mapping[str, Path], folder: Path, shop: Workshop) -> Walk:
        """The images on their way."""
        model = shop.model(cfg)
        quantized = shop.quantized(inputs[Quantize.name])
        beside = FloatOutputs(inputs[FloatPath.name])
        steps, wanted = fit_table(cfg, model, shop), noise_chunks(cfg)
        return Walk(model, quantized, construct(cfg.correction), steps, wanted, beside.of, folder)

    def _choose(self, correction: Auto, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        """Let every candidate draw the same images, and keep the one that is chosen."""
        wanted = chunks("trial", [correction.seed], correction.images, cfg.micro_batch)
        (out / "trial").mkdir(exist_ok=True)

        def images(name: str) -> Tensor:
            trial = partial(self.trial, cfg, inputs, name)
            run_chunks(trial, wanted, out / "trial" / name, shop, f"{self.title}: {name}")
            return torch.cat([chunk["images"] for chunk in read_chunks(out / "trial" / name)])

        choice = correction.choose(images(FLOAT), {name: images(name) for name in correction.candidates})
        FittedCorrection.load(inputs[choice.chosen]).save(out)
        choice.save(out)
        shop.runtime.say(f"auto: {choice.reason}")

    def trial(self, cfg: DictConfig, inputs: Mapping[str, Path], name: str, shop: Workshop) -> DrawImages:
        """What is done on every device for a candidate, or for the float model."""
        if name == FLOAT:
            model = shop.model(cfg)
            return DrawImages.of(model, shop.table(cfg, model))
        return draw_corrected(shop.quantized(inputs[Quantize.name]), FittedCorrection.load(inputs[name]))


def with_candidate(cfg: DictConfig, name: str) -> DictConfig:
    """The configuration with one of the candidates as its correction."""
    found = cfg.copy()
    with open_dict(found):
        found.correction = OmegaConf.to_container(cfg.correction.candidates[name], resolve=True)
    return found


def follow(fabric: Fabric, walk: partial[Walk], cfg: DictConfig, out: Path, shop: Workshop) -> None:
    """Fit step by step and save."""
    carried(walk().go(fabric.device, shop.runtime.progress), cfg, shop).save(out)
