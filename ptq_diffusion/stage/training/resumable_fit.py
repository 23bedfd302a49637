"""Training that goes on from its own checkpoint, shared by the stages that train a network."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ptq_diffusion.engine.runtime import Runtime
from ptq_diffusion.stage.training.checkpoint import SafetensorsCheckpointIO, present
from ptq_diffusion.stage.training.training_stream import Examples, TrainingStream

LOG_EVERY = 50
Network = TypeVar("Network", bound=nn.Module)


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


class Training(L.LightningModule, Generic[Network]):
    """A network in training; a subclass has the loss of a step.

    Args:
        network: whose parameters are trained.
        optimizer: from parameters to an optimizer.
        rate: the learning rate's factor as a function of the step.
    """

    def __init__(self, network: Network, optimizer: Callable[..., Optimizer], rate: Callable[[int], float]) -> None:
        super().__init__()
        self.network: Network = network
        self._optimizer, self._rate = optimizer, rate

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self._optimizer(self.network.parameters())
        # A function and not the object itself: LambdaLR would keep the object's old length in every checkpoint.
        schedule = LambdaLR(optimizer, lambda step: self._rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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
