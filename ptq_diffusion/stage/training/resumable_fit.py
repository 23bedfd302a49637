"""Training that goes on from its own checkpoint, shared by the stages that train a network."""

import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.stage.training.checkpoint import SafetensorsCheckpointIO, present
from ptq_diffusion.stage.training.training_stream import Examples, TrainingStream

LOG_EVERY = 50


class WarmupStableDecay:
    """A learning-rate factor: linear up over `warmup` steps, 1, then linear to 0 over the last `cooldown` of `steps`.

    The stable part does not depend on `steps`, so a training can be lengthened from a checkpoint of that part.
    """

    def __init__(self, steps: int, warmup: int, cooldown: int) -> None:
        if min(steps, warmup, cooldown) < 1:
            raise ValueError(f"expected steps, warmup and cooldown of at least 1, got {steps}, {warmup} and {cooldown}")
        self.steps, self.warmup, self.cooldown = steps, warmup, cooldown

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup, max(0.0, (self.steps - step) / self.cooldown))


def resumable_fit(
    module: L.LightningModule, examples: Examples, training: DictConfig, out: Path, runtime: Runtime
) -> int:
    """Train `module` for `training.steps` steps on a `TrainingStream`, from `<out>/checkpoint` where there is one.

    Args:
        module: takes batches `{images, labels, draw}`.
        examples: what it is trained on.
        training: `steps`, `batch_size`, `seed`, `precision` and `checkpoint_every`.
        out: receives `checkpoint/last.ckpt` and `log/from_<step>/metrics.csv`.
        runtime: devices, progress and loggers.

    Returns:
        The step that this call started from.

    Raises:
        FloatingPointError: a trained weight is not finite.
    """
    resume = out / "checkpoint" / "last.ckpt"
    start = step_of(resume)
    stream = TrainingStream(examples, training.batch_size, training.seed, start, training.steps)
    trainer = _trainer(training, start, out, runtime)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # it is what we go on from
        trainer.fit(module, DataLoader(stream, batch_size=None), ckpt_path=resume if start else None)
    if not torch.isfinite(torch.stack([p.detach().abs().max() for p in module.parameters()])).all():
        raise FloatingPointError("training diverged: a weight is not finite; lower the learning rate")
    return start


def _trainer(training: DictConfig, start: int, out: Path, runtime: Runtime) -> L.Trainer:
    saver = ModelCheckpoint(
        out / "checkpoint", filename="last", every_n_train_steps=training.checkpoint_every, enable_version_counter=False
    )
    return runtime.trainer(
        out,
        [saver],
        [*runtime.loggers, CSVLogger(out, name="log", version=f"from_{start}")],
        max_steps=training.steps,
        max_epochs=-1,
        precision=training.precision,
        plugins=[SafetensorsCheckpointIO()],
        log_every_n_steps=min(LOG_EVERY, training.steps),
    )


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint has seen; 0 where there is none."""
    if present(checkpoint) is None:
        return 0
    return int(SafetensorsCheckpointIO().load_checkpoint(checkpoint)["global_step"])
