"""Stage: the correction, fitted to moments of the noise, or step by step on images along a path."""

from collections.abc import Callable, Mapping
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
from ptq_diffusion.engine.models import decoder_checksum
from ptq_diffusion.engine.stage import ModelStage, Need
from ptq_diffusion.engine.synchronisation import synchronised
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.drawing.corrected import draw_corrected
from ptq_diffusion.stage.drawing.images import DrawImages
from ptq_diffusion.stage.fit_setting import carried, fit_model, fit_network, fit_table, with_own_guidance
from ptq_diffusion.stage.fitting.images import Images
from ptq_diffusion.stage.float_path import FloatOutputs, FloatPath, noise_chunks
from ptq_diffusion.stage.noise import Noise, noise_fingerprint
from ptq_diffusion.stage.path_fit import PathFit
from ptq_diffusion.stage.prompts import EncodePrompts
from ptq_diffusion.stage.quantize import Quantize


class Fit(ModelStage):
    """The folder of a `FittedCorrection`, with `choice.json` where it was chosen among several."""

    name = "fit"
    version = 1
    needs = (Quantize, FloatPath, Noise, EncodePrompts)
    uses = ("model", "condition", "sampler", "noise", "micro_batch", "backend", "correction")
    scratch = ("path_fit", "trial")

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """With no guidance of its own where it is that of the images: see `with_own_guidance`."""
        return with_own_guidance(cfg)

    def inputs(self, cfg: DictConfig) -> Mapping[str, Need]:
        """A choice needs every candidate fitted; a fit the noise or the float path, and the quantized network."""
        correction = construct(cfg.correction)
        needs = {stage.name: Need(stage, cfg) for stage in (Quantize, EncodePrompts) if stage.serves(cfg)}
        if isinstance(correction, Auto):
            return needs | {
                name: Need(Fit, with_candidate(cfg, name), f"leave it out with ~correction.candidates.{name}")
                for name in correction.candidates
            }
        need = Noise if correction.reads is Reads.MOMENTS else FloatPath
        return needs | {need.name: Need(need, cfg)}

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        correction = construct(cfg.correction)
        if not isinstance(correction, Auto):
            return super().evidence(cfg)
        # A trial draws images.
        checksums = {"judge": correction.judge.checksum(), "decoder": decoder_checksum(cfg)}
        return super().evidence(cfg) | checksums

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        correction = construct(cfg.correction)
        if isinstance(correction, Auto):
            self._choose(correction, cfg, inputs, out, shop)
        elif correction.reads is Reads.MOMENTS:
            self._from_moments(correction, cfg, inputs, out, shop)
        else:
            build = partial(self.path_fit, cfg, inputs, out / "path_fit")
            follower = partial(
                fit_on_devices, build=build, cfg=cfg, out=out, shop=shop, threads=torch.get_num_threads()
            )
            shop.runtime.launch(follower, tasks=len(noise_chunks(cfg)))

    def _from_moments(
        self,
        correction: Correction[MomentEvidence],
        cfg: DictConfig,
        inputs: Mapping[str, Path],
        out: Path,
        shop: Workshop,
    ) -> None:
        model = shop.model(cfg)
        quantized = fit_network(shop.quantized(cfg, inputs[Quantize.name]), cfg, inputs, shop)
        steps = fit_table(cfg, model, shop)
        statistics = NoiseStatistics.load(inputs[Noise.name] / "noise.safetensors")
        statistics.require(noise_fingerprint(quantized, steps))
        carried(fit_diagnosed(correction, statistics, steps), cfg, shop).save(out)

    def path_fit(self, cfg: DictConfig, inputs: Mapping[str, Path], folder: Path, shop: Workshop) -> PathFit:
        """The fit along a path, on the images of `noise`."""
        model = fit_model(cfg, inputs, shop)
        networks = model, fit_network(shop.quantized(cfg, inputs[Quantize.name]), cfg, inputs, shop)
        images = Images(noise_chunks(cfg), FloatOutputs(inputs[FloatPath.name]).of, shop.conditions(cfg, model, inputs))
        return PathFit(*networks, construct(cfg.correction), fit_table(cfg, model, shop), images, folder)

    def _choose(self, correction: Auto, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        """Let every candidate draw the same images, and keep the one that is chosen."""
        chunks_to_do = chunks("trial", [correction.seed], correction.images, cfg.micro_batch)
        (out / "trial").mkdir(exist_ok=True)

        def images(name: str) -> Tensor:
            trial = partial(self.trial, cfg, inputs, name)
            run_chunks(trial, chunks_to_do, out / "trial" / name, shop, f"{self.title}: {name}")
            return torch.cat([chunk["images"] for chunk in read_chunks(out / "trial" / name)])

        layers = shop.host.simulated(inputs[Quantize.name]).layers().values()
        notes = correction.without_input([layer.settings.form for layer in layers])
        variants = {name: images(name) for name in correction.candidates}
        choice = correction.choose(images(FLOAT), variants, notes)
        FittedCorrection.load(inputs[choice.chosen]).save(out)
        choice.save(out)
        shop.runtime.say(f"auto: {choice.reason}")

    def trial(self, cfg: DictConfig, inputs: Mapping[str, Path], name: str, shop: Workshop) -> DrawImages:
        """The work of every device for a candidate, or for the float model."""
        decoder = shop.decoder(cfg)
        if name == FLOAT:
            model = shop.guided(cfg, inputs)
            return DrawImages.of(model, shop.table(cfg, model), shop.conditions(cfg, model, inputs), decoder)
        quantized = shop.quantized(cfg, inputs[Quantize.name])
        conditions = shop.conditions(cfg, quantized, inputs)
        return draw_corrected(quantized, FittedCorrection.load(inputs[name]), conditions, decoder)


def with_candidate(cfg: DictConfig, name: str) -> DictConfig:
    """The configuration with one of the candidates as its correction."""
    candidate = cfg.copy()
    with open_dict(candidate):
        candidate.correction = OmegaConf.to_container(cfg.correction.candidates[name], resolve=True)
    return candidate


def fit_on_devices(
    fabric: Fabric, build: Callable[[Workshop], PathFit], cfg: DictConfig, out: Path, shop: Workshop, threads: int
) -> None:
    """Fit step by step, together with all other devices; the first of them saves.

    Args:
        fabric: of this device.
        build: makes the fit with a workshop.
        cfg: of the stage.
        out: the folder of the artefact.
        shop: of this process.
        threads: of torch in every process, on which last bits depend.
    """
    torch.set_num_threads(threads)
    with synchronised(fabric):
        work = build(shop.on(fabric.device))
    fitted = work.fit(fabric, Fit().title, shop.runtime.progress)
    if fabric.is_global_zero:
        carried(fitted, cfg, shop).save(out)
