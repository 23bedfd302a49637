"""Stage: train a denoiser from scratch and save it as a diffusers pipeline."""

from collections.abc import Mapping
from pathlib import Path

from diffusers import DDPMPipeline
from lightning import seed_everything
from omegaconf import DictConfig

from ptq_diffusion.stage.denoiser_training import DenoiserTraining
from ptq_diffusion.stage.factory import construct
from ptq_diffusion.stage.resumable_fit import WarmupStableDecay, resumable_fit
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.store import Stage


class TrainDenoiser(Stage):
    """From images to a `DDPMPipeline` folder that holds the averaged weights; resumes from its own checkpoint."""

    name = "train_denoiser"
    version = 1
    uses = ("data", "training")
    scratch = ("checkpoint",)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {"data": construct(cfg.data).checksum()}

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> None:  # noqa: ARG002
        training = cfg.training
        seed_everything(training.seed)
        module = DenoiserTraining(
            network=construct(training.network),
            scheduler=construct(training.scheduler),
            optimizer=construct(training.optimizer),
            rate=WarmupStableDecay(training.steps, training.warmup, training.cooldown),
            ema_decay=training.ema_decay,
            snr_gamma=training.snr_gamma,
        )
        resumable_fit(module, construct(cfg.data).load(), training, out, runtime)
        DDPMPipeline(module.average.module.eval(), module.scheduler).save_pretrained(out, safe_serialization=True)
