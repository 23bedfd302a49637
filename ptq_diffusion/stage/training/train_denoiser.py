"""Stage: train a denoiser of images and save it as a diffusers pipeline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning import seed_everything
from omegaconf import DictConfig

from ptq_diffusion.data import LabelledImages
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.training.conditioned_network import UnlabelledNetwork
from ptq_diffusion.stage.training.denoiser_training import DenoiserTraining
from ptq_diffusion.stage.training.initialisation import initial_checksum
from ptq_diffusion.stage.training.resumable_fit import WarmupStableDecay, resumable_fit
from ptq_diffusion.stage.training.training_stream import AugmentedImages


class TrainDenoiser(Stage):
    """A `DDPMPipeline` folder of averaged weights, trained on images; resumes from its own checkpoint."""

    name = "train_denoiser"
    version = 1
    uses = ("data", "training")
    scratch = ("checkpoint",)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {"data": construct(cfg.data).checksum()} | initial_checksum(cfg.training)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        training, data = cfg.training, construct(cfg.data).load()
        seed_everything(training.seed)
        network = UnlabelledNetwork(construct(training.network))
        if training.init_from.path is not None:
            network.begin_from(training.init_from.path)
        module = DenoiserTraining(
            network=network,
            objective=construct(training.objective)(scheduler=construct(training.scheduler)),
            optimizer=construct(training.optimizer),
            rate=WarmupStableDecay(training.steps, training.warmup, training.cooldown),
            ema_decay=training.ema_decay,
            unlabelled_share=0.0,
        )
        require_size(module.network.config, data)
        examples = AugmentedImages(data, construct(training.augmentation))
        resumable_fit(module, examples, training, out, shop.runtime)
        average = cast(UnlabelledNetwork, module.average.module)
        average.eval().save(out, module.objective.scheduler)


def require_size(config: Mapping[str, Any], data: LabelledImages) -> None:
    """Refuse images of another size than the network's, which would be trained on and never sampled.

    Raises:
        ValueError: channels, height or width differ.
    """
    size = config["sample_size"]
    expected = (config["in_channels"], *((size, size) if isinstance(size, int) else size))
    if tuple(data.images.shape[1:]) != expected:
        raise ValueError(
            f"expected images {expected} as the network has it, got {tuple(data.images.shape[1:])}; resize them or set "
            "training.network.sample_size, in_channels and out_channels"
        )
