"""Stage: train a denoiser from scratch and save it as a diffusers pipeline."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DDPMPipeline
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from ptq_diffusion.stage.checkpoint import SafetensorsCheckpointIO
from ptq_diffusion.stage.denoiser_training import DenoiserTraining
from ptq_diffusion.stage.factory import construct
from ptq_diffusion.stage.runtime import Runtime
from ptq_diffusion.stage.store import Stage
from ptq_diffusion.stage.training_stream import TrainingStream


class WarmupStableDecay:
    """A learning-rate factor: linear up over `warmup` steps, 1, then linear to 0 over the last `cooldown` of `steps`.

    The stable part does not depend on `steps`, so a training can be lengthened from a checkpoint of that part.
    """

    def __init__(self, steps: int, warmup: int, cooldown: int) -> None:
        self.steps, self.warmup, self.cooldown = steps, warmup, cooldown

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / self.cooldown))


class TrainDenoiser(Stage):
    """From images to a `DDPMPipeline` folder that holds the averaged weights; resumes from its own checkpoint."""

    name = "train_denoiser"
    version = 1
    uses = ("data", "training")

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
        self._fit(module, cfg, out, runtime)
        network = module.average.module.eval()
        DDPMPipeline(network, module.scheduler).save_pretrained(out, safe_serialization=True)
        shutil.rmtree(out / "checkpoint")

    def _fit(self, module: DenoiserTraining, cfg: DictConfig, out: Path, runtime: Runtime) -> None:
        training, checkpoint = cfg.training, out / "checkpoint"
        saver = ModelCheckpoint(
            checkpoint, filename="last", every_n_train_steps=training.checkpoint_every, enable_version_counter=False
        )
        resume = checkpoint / "last.ckpt"
        start = _step_of(resume)
        stream = TrainingStream(
            construct(cfg.data).load(),
            training.batch_size,
            construct(training.augmentation),
            training.seed,
            start,
            training.steps,
        )
        trainer = runtime.trainer(
            out,
            [saver],
            max_steps=training.steps,
            max_epochs=-1,
            precision=training.precision,
            plugins=[SafetensorsCheckpointIO()],
            log_every_n_steps=50,
            extra_loggers=[CSVLogger(out, name="log", version=f"from_{start}")],
        )
        trainer.fit(module, DataLoader(stream, batch_size=None), ckpt_path=resume if start else None)
        if not torch.isfinite(torch.stack([p.abs().max() for p in module.network.parameters()])).all():
            raise FloatingPointError("training diverged: the network's weights are not finite; lower the learning rate")


def _step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint has seen; 0 where there is none."""
    if not checkpoint.exists():
        return 0
    return int(SafetensorsCheckpointIO().load_checkpoint(checkpoint)["global_step"])
