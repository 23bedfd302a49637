"""Stage: the quantized, corrected model as a pipeline that stock diffusers loads."""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.correction.pipeline.pipeline_folder import DDPM, PLACES, copied, pipeline_name, write_pipeline
from ptq_diffusion.engine.stage import ModelStage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model import Denoiser, Pixels
from ptq_diffusion.model.hub import local_folder
from ptq_diffusion.model.pipeline_index import CLASS_EMBEDDER
from ptq_diffusion.stage.fit import Fit
from ptq_diffusion.stage.quantize import Quantize


class Export(ModelStage):
    """A folder for the `from_pretrained` of a stock pipeline, which draws the images of `samples_corrected`.

    The pipeline is that of the model folder, with its decoder and text encoders, or a `DDPMPipeline` of an
    unconditional network of pixels. It computes with the backend of the experiment. Guidance is left to it: it must be
    called with the scale of the experiment, and with the guidance that the network was told.
    """

    name = "export"
    version = 2
    needs = (Quantize, Fit)
    uses = ("model", "backend", "condition")

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        components = files_digest(copied(local_folder(cfg.model.path)))
        return super().evidence(cfg) | {"components": components}

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        quantized = shop.host.quantized(cfg, inputs[Quantize.name])
        name, embedded = export_name(cfg, quantized, shop), cfg.condition.guidance.embedded
        kind = PLACES.get(name, DDPM).network_class
        correction = FittedCorrection.load(inputs[Fit.name])
        network = kind(quantized, correction, embedded)
        write_pipeline(local_folder(cfg.model.path), name, network, out)
        scale = network.config.guidance_scale if embedded is None else embedded
        call = f"num_inference_steps={len(correction.steps)}" + (f", guidance_scale={scale:g}" if scale != 1 else "")
        shop.runtime.say(
            f"export: import ptq_diffusion.correction, load it with {name}.from_pretrained, call it with {call}"
        )
        if (out / CLASS_EMBEDDER).is_dir():
            shop.runtime.say(
                "export: load it with text_encoder=None, tokenizer=None, and give rows of class_embedder's weight as "
                "prompt_embeds, (B, 1, D), its last row as negative_prompt_embeds"
            )


def export_name(cfg: DictConfig, model: Denoiser, shop: Workshop) -> str:
    """The name of the stock pipeline of an export, see `pipeline_name`."""
    latent = not isinstance(shop.decoder(cfg), Pixels)
    return pipeline_name(local_folder(cfg.model.path), model.needs, latent)
