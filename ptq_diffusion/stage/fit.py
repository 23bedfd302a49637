"""Stage: the correction, fitted to moments of the noise, or step by step on images that walk along a path."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ptq_diffusion.correction import MomentCorrection, NoiseStatistics
from ptq_diffusion.correction.diagnostics import fit_diagnosed
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.chunks import chunks
from ptq_diffusion.stage.factory import construct
from ptq_diffusion.stage.fit_table import build_fit_steps, carried
from ptq_diffusion.stage.noise import Noise, noise_fingerprint
from ptq_diffusion.stage.parts import build_model, build_quantized
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.store import ModelStage
from ptq_diffusion.stage.walk import Walk


class Fit(ModelStage):
    """The folder of a `FittedCorrection`, on one device."""

    name = "fit"
    version = 1
    needs = (Calibrate, Noise)
    uses = ("model", "sampler", "quantizer", "bitwidth", "noise", "micro_batch", "correction")
    scratch = ("walk",)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> None:
        correction = construct(cfg.correction)
        if isinstance(correction, MomentCorrection):
            model = build_model(cfg)
            quantized, steps = build_quantized(cfg, model, inputs[Calibrate.name]), build_fit_steps(cfg, model)
            statistics = NoiseStatistics.load(inputs[Noise.name] / "noise.safetensors")
            statistics.require(noise_fingerprint(quantized, steps))
            carried(fit_diagnosed(correction, statistics, steps), cfg).save(out)
        else:
            walk = partial(self.walk, cfg, inputs, out / "walk")
            runtime.launch(partial(follow, walk=walk, cfg=cfg, out=out, progress=runtime.progress), tasks=1)

    def walk(self, cfg: DictConfig, inputs: Mapping[str, Path], folder: Path) -> Walk:
        """The images on their way."""
        model = build_model(cfg)
        quantized = build_quantized(cfg, model, inputs[Calibrate.name])
        wanted = chunks("noise", [cfg.noise.seed], cfg.noise.images, cfg.micro_batch)
        return Walk(model, quantized, construct(cfg.correction), build_fit_steps(cfg, model), wanted, folder)


def follow(fabric: Fabric, walk: partial[Walk], cfg: DictConfig, out: Path, progress: bool) -> None:
    """Fit step by step and save."""
    carried(walk().go(fabric.device, progress), cfg).save(out)
