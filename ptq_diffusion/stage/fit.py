"""Stage: the correction, fitted to moments of the noise, or step by step on images along a path."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from ptq_diffusion.correction import Auto, Correction, FittedCorrection, MomentEvidence, NoiseStatistics, Reads
from ptq_diffusion.correction.diagnostics import fit_diagnosed
from ptq_diffusion.correction.method.auto import FLOAT
from ptq_diffusion.engine.chunks import chunks, read_chunks, run_chunks
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.engine.stage import ModelStage, Need
from ptq_diffusion.engine.workshop import build_model, build_quantized, build_steps
from ptq_diffusion.network import OutputLayerTap
from ptq_diffusion.stage.calibrate import Calibrate
from ptq_diffusion.stage.draw_corrected import draw_corrected
from ptq_diffusion.stage.draw_images import DrawImages
from ptq_diffusion.stage.fit_table import build_fit_steps, carried
from ptq_diffusion.stage.float_path import FloatOutputs, FloatPath, noise_chunks
from ptq_diffusion.stage.noise import Noise, noise_fingerprint
from ptq_diffusion.stage.path_fit import PathFit


class Fit(ModelStage):
    """The folder of a `FittedCorrection`, with `choice.json` where it was chosen among several."""

    name = "fit"
    version = 1
    needs = (Calibrate, FloatPath, Noise)
    uses = ("model", "sampler", "quantizer", "bitwidth", "noise", "micro_batch", "correction")
    scratch = ("path_fit", "trial")

    def inputs(self, cfg: DictConfig) -> Mapping[str, Need]:
        """A choice needs every candidate fitted; a fit the noise or the float path, and the quantized network."""
        correction = construct(cfg.correction)
        calibrated = {Calibrate.name: Need(Calibrate, cfg)}
        if isinstance(correction, Auto):
            return calibrated | {
                name: Need(Fit, with_candidate(cfg, name), f"leave it out with ~correction.candidates.{name}")
                for name in correction.candidates
            }
        need = Noise if correction.reads is Reads.MOMENTS else FloatPath
        return calibrated | {need.name: Need(need, cfg)}

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        correction = construct(cfg.correction)
        judge = {"judge": correction.judge.checksum()} if isinstance(correction, Auto) else {}
        return super().evidence(cfg) | judge

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> None:
        correction = construct(cfg.correction)
        if isinstance(correction, Auto):
            self._choose(correction, cfg, inputs, out, runtime)
        elif correction.reads is Reads.MOMENTS:
            self._from_moments(correction, cfg, inputs, out)
        else:
            path_fit = partial(self.path_fit, cfg, inputs, out / "path_fit")
            runtime.launch(partial(follow, path_fit=path_fit, cfg=cfg, out=out, progress=runtime.progress), tasks=1)

    def _from_moments(
        self, correction: Correction[MomentEvidence], cfg: DictConfig, inputs: Mapping[str, Path], out: Path
    ) -> None:
        model = build_model(cfg)
        quantized, steps = build_quantized(cfg, model, inputs[Calibrate.name]), build_fit_steps(cfg, model)
        statistics = NoiseStatistics.load(inputs[Noise.name] / "noise.safetensors")
        statistics.require(noise_fingerprint(quantized, steps))
        carried(fit_diagnosed(correction, statistics, steps), cfg).save(out)

    def path_fit(self, cfg: DictConfig, inputs: Mapping[str, Path], folder: Path) -> PathFit:
        """The fit along a path, on the images of `noise`."""
        model = build_model(cfg)
        quantized = build_quantized(cfg, model, inputs[Calibrate.name])
        beside = FloatOutputs(inputs[FloatPath.name])
        steps, wanted = build_fit_steps(cfg, model), noise_chunks(cfg)
        return PathFit(model, quantized, construct(cfg.correction), steps, wanted, beside.of, folder)

    def _choose(
        self, correction: Auto, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, runtime: Runtime
    ) -> None:
        """Let every candidate draw the same images, and keep the one that is chosen."""
        wanted = chunks("trial", [correction.seed], correction.images, cfg.micro_batch)
        (out / "trial").mkdir(exist_ok=True)

        def images(name: str) -> Tensor:
            run_chunks(
                partial(self.trial, cfg, inputs, name), wanted, out / "trial" / name, runtime, f"trial of {name}"
            )
            return torch.cat([chunk["images"] for chunk in read_chunks(out / "trial" / name)])

        choice = correction.choose(images(FLOAT), {name: images(name) for name in correction.candidates})
        FittedCorrection.load(inputs[choice.chosen]).save(out)
        choice.save(out)
        runtime.say(f"auto: {choice.reason}")

    def trial(self, cfg: DictConfig, inputs: Mapping[str, Path], name: str) -> DrawImages:
        """The work on every device for a candidate, or for the float model."""
        model = build_model(cfg)
        if name == FLOAT:
            return DrawImages.of(model, build_steps(cfg, model))
        quantized = build_quantized(cfg, model, inputs[Calibrate.name])
        return draw_corrected(quantized, OutputLayerTap(quantized, model.sites()), FittedCorrection.load(inputs[name]))


def with_candidate(cfg: DictConfig, name: str) -> DictConfig:
    """The configuration with one of the candidates as its correction."""
    candidate = cfg.copy()
    with open_dict(candidate):
        candidate.correction = OmegaConf.to_container(cfg.correction.candidates[name], resolve=True)
    return candidate


def follow(fabric: Fabric, path_fit: partial[PathFit], cfg: DictConfig, out: Path, progress: bool) -> None:
    """Fit step by step and save."""
    carried(path_fit().go(fabric.device, progress), cfg).save(out)
