"""Stage: train the autoencoder that a latent model works in."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from lightning import seed_everything
from omegaconf import DictConfig
from torch import Tensor

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.data import LabelledImages
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.stage.training.autoencoder_training import AutoencoderTraining
from ptq_diffusion.stage.training.resumable_fit import WarmupStableDecay, resumable_fit
from ptq_diffusion.stage.training.training_stream import AugmentedImages

AUTOENCODER = "vae"
BATCH = 64


class TrainAutoencoder(Stage):
    """An `AutoencoderKL` in `vae/` whose scaled codes have mean 0 and variance 1; resumes from its own checkpoint."""

    name = "train_autoencoder"
    version = 1
    uses = ("data", "training")
    scratch = ("checkpoint",)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        return {"data": construct(cfg.data).checksum()}

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:  # noqa: ARG002
        training, data = cfg.training, construct(cfg.data).load()
        seed_everything(training.seed)
        module = AutoencoderTraining(
            network=construct(training.network),
            optimizer=construct(training.optimizer),
            rate=WarmupStableDecay(training.steps, training.warmup, training.cooldown),
            edge_weight=training.edge_weight,
            kl_weight=training.kl_weight,
        )
        require_divisible(module.network, data)
        examples = AugmentedImages(data, construct(training.augmentation))
        resumable_fit(module, examples, training, out, shop.runtime)
        network = module.network.to(shop.device).eval()
        normalize(network, data)
        # The codes' mean and scale are measured on the weights that are saved.
        network.save_pretrained(out / AUTOENCODER, safe_serialization=True)
        write_json(out / "metrics.json", {"psnr": psnr(network, data), "images": len(data), "steps": training.steps})


def require_divisible(network: AutoencoderKL, data: LabelledImages) -> None:
    """Refuse images that the network does not halve evenly.

    Raises:
        ValueError: height or width is no multiple of the factor, or the channels differ.
    """
    factor = 2 ** (len(network.config.block_out_channels) - 1)
    channels, height, width = data.images.shape[1:]
    if channels != network.config.in_channels or height % factor or width % factor:
        raise ValueError(
            f"expected images of {network.config.in_channels} channels and sides that {factor} divides, got "
            f"{channels} x {height} x {width}; resize them or set training.network.block_out_channels and in_channels"
        )


@torch.no_grad()
def normalize(network: AutoencoderKL, data: LabelledImages) -> None:
    """Give every channel of the code mean 0 and one variance, which `scaling_factor` brings to 1.

    The change is undone in `post_quant_conv`, so reconstructions stay as they are; a pipeline knows one factor only.
    """
    codes = torch.cat([means(network, images) for images in data.images.split(BATCH)]).double()
    mean, deviation = codes.mean((0, 2, 3)), codes.std((0, 2, 3))
    pooled = deviation.square().mean().sqrt()
    gain = (pooled / deviation).float()
    channels = len(gain)
    encode, decode = network.quant_conv, network.post_quant_conv
    decode.bias += decode.weight.flatten(1) @ mean.float().to(decode.weight.device)
    decode.weight /= gain.to(decode.weight.device)[None, :, None, None]
    encode.bias[:channels] -= mean.float()
    encode.weight[:channels] *= gain[:, None, None, None]
    encode.bias[:channels] *= gain
    encode.bias[channels:] += 2 * gain.log()
    network.register_to_config(scaling_factor=1 / float(pooled))


def means(network: AutoencoderKL, images: Tensor) -> Tensor:
    """The unscaled means of the codes of images (B, C, H, W) uint8."""
    return network.encode((images.float() / 127.5 - 1).to(network.device)).latent_dist.mode()


@torch.inference_mode()
def psnr(network: AutoencoderKL, data: LabelledImages, most: int = 1024) -> float:
    """The mean over images of the peak signal-to-noise ratio of their reconstructions, in dB, of at most the first."""
    ratios = []
    for images in data.images[:most].split(BATCH):
        drawn = (network.decode(means(network, images)).sample.clamp(-1, 1) * 127.5 + 127.5).round().cpu()
        ratios.append(-10 * ((drawn - images) / 255).square().mean((1, 2, 3)).clamp(min=1e-10).log10())
    return float(torch.cat(ratios).mean())
