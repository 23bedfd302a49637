"""Stage: train a denoiser of latents, told classes or captions, and save it as a stock diffusers pipeline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning import seed_everything
from omegaconf import DictConfig

from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Need, Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.training.conditioned_network import LatentNetwork
from ptq_diffusion.stage.training.denoiser_training import DenoiserTraining
from ptq_diffusion.stage.training.initialisation import initial_checksum
from ptq_diffusion.stage.training.latents import EncodeLatents, Latents, autoencoder_needs, load_autoencoder
from ptq_diffusion.stage.training.resumable_fit import WarmupStableDecay, resumable_fit
from ptq_diffusion.stage.training.train_autoencoder import TrainAutoencoder


class TrainLatentDenoiser(Stage):
    """A pipeline folder of averaged weights, trained on latents; resumes from its own checkpoint."""

    name = "train_latent_denoiser"
    version = 1
    needs = (TrainAutoencoder, EncodeLatents)
    uses = ("training",)
    scratch = ("checkpoint",)

    def inputs(self, cfg: DictConfig) -> Mapping[str, Need]:
        return autoencoder_needs(cfg) | {EncodeLatents.name: Need(EncodeLatents, cfg)}

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return initial_checksum(cfg.training)

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        training, latents = cfg.training, Latents.load(inputs[EncodeLatents.name])
        seed_everything(training.seed)
        network = construct(training.network)(names=latents.names)
        if training.init_from.path is not None:
            network.begin_from(training.init_from.path)
        module = DenoiserTraining(
            network=network,
            objective=construct(training.objective)(scheduler=construct(training.scheduler)),
            optimizer=construct(training.optimizer),
            rate=WarmupStableDecay(training.steps, training.warmup, training.cooldown),
            ema_decay=training.ema_decay,
            unlabelled_share=training.unlabelled_share,
        )
        require_size(module.network.config, tuple(latents.views.shape[2:]))
        resumable_fit(module, latents, training, out, shop.runtime)
        average = cast(LatentNetwork, module.average.module)
        average.eval().save(out, load_autoencoder(training, inputs), module.objective.scheduler)


def require_size(config: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Refuse examples of another size than the network's, which would be trained on and never sampled.

    Raises:
        ValueError: channels, height or width differ.
    """
    size = config["sample_size"]
    expected = (config["in_channels"], *((size, size) if isinstance(size, int) else size))
    if shape != expected:
        raise ValueError(
            f"expected latents {expected} as the network has it, got {shape} of the autoencoder; set the network's "
            "sample_size, in_channels and out_channels, or take another autoencoder with training@autoencoder=NAME"
        )
