"""Stage: the latents of training images, encoded once for every network that is trained on them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from omegaconf import DictConfig, open_dict
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.artefact.tensors import write_tensors
from ptq_diffusion.engine.factory import construct
from ptq_diffusion.engine.stage import Need, Stage
from ptq_diffusion.engine.workshop import Workshop
from ptq_diffusion.model.decoder import decoder_checksum, scaled_latents
from ptq_diffusion.stage.training.initialisation import saved_autoencoder
from ptq_diffusion.stage.training.train_autoencoder import AUTOENCODER, TrainAutoencoder
from ptq_diffusion.stage.training.training_stream import Examples

BATCH = 64


@dataclass(frozen=True)
class Latents(Examples):
    """Latents of every image in each of its views, (N, V, C, H, W), one of them drawn; labels (N,) with names."""

    views: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.views)

    def batch(self, rows: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        view = torch.randint(self.views.shape[1], (len(rows),), generator=draw)
        return {"images": self.views[rows, view].float(), "labels": self.labels[rows]}

    @staticmethod
    def load(folder: Path) -> "Latents":
        """The latents that the stage left in a folder."""
        tensors = load_file(folder / "latents.safetensors")
        names = json.loads((folder / "names.json").read_text())
        return Latents(tensors["views"], tensors["labels"], tuple(names))


class EncodeLatents(Stage):
    """`latents.safetensors`: the scaled mean of every image's code, as it is and mirrored, in float16."""

    name = "latents"
    version = 1
    needs = (TrainAutoencoder,)
    uses = ("data", "autoencoder", "training.mirrored", "training.init_from")
    places = ("training.init_from.path",)

    @classmethod
    def made_of(cls, cfg: DictConfig) -> DictConfig:
        """The autoencoder of a saved model has none of the options of one that is trained."""
        if cfg.training.init_from.path is None:
            return cfg
        cfg = cfg.copy()
        with open_dict(cfg):
            cfg.autoencoder = {}
        return cfg

    def inputs(self, cfg: DictConfig) -> Mapping[str, Need]:
        return autoencoder_needs(cfg)

    def evidence(self, cfg: DictConfig) -> dict[str, str]:
        path = cfg.training.init_from.path
        # Of the saved model its autoencoder alone counts: others that share it have the same latents.
        beginning = {} if path is None else {"autoencoder": decoder_checksum(path)}
        return {"data": construct(cfg.data).checksum()} | beginning

    def make(self, cfg: DictConfig, inputs: Mapping[str, Path], out: Path, shop: Workshop) -> None:
        data = construct(cfg.data).load()
        names = require_names(data.label_names)
        assert data.labels is not None, "labels that have names"
        network = load_autoencoder(cfg.training, inputs)
        views = encoded(network.to(shop.device).eval(), data.images, cfg.training.mirrored)
        write_tensors(out / "latents.safetensors", {"views": views, "labels": data.labels})
        write_json(out / "names.json", list(names))


def autoencoder_needs(cfg: DictConfig) -> dict[str, Need]:
    """The training of the autoencoder; nothing where the training begins from a saved model, which has its own."""
    if cfg.training.init_from.path is not None:
        return {}
    autoencoder = cfg.copy()
    with open_dict(autoencoder):
        autoencoder.training = cfg.autoencoder
    return {TrainAutoencoder.name: Need(TrainAutoencoder, autoencoder)}


def load_autoencoder(training: DictConfig, inputs: Mapping[str, Path]) -> AutoencoderKL:
    """The autoencoder with its weights in float32.

    Args:
        training: says where the training begins, `init_from.path`.
        inputs: the artefacts of `autoencoder_needs`.

    Raises:
        ValueError: the model that the training begins from has no `AutoencoderKL`.
    """
    path = training.init_from.path
    if path is None:
        return AutoencoderKL.from_pretrained(inputs[TrainAutoencoder.name] / AUTOENCODER, local_files_only=True)
    return saved_autoencoder(path)


def require_names(names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the labels of images.

    Raises:
        ValueError: there are none.
    """
    if names is None:
        raise ValueError(
            "expected images with class labels or captions, got images without; set data.label_column, or train a "
            "network of pixels with experiment=train_denoiser"
        )
    return names


@torch.inference_mode()
def encoded(network: AutoencoderKL, images: Tensor, mirrored: bool) -> Tensor:
    """Scaled means of images' codes, (N, 3, H', W') uint8 to (N, V, C, H, W) float16; the second view is mirrored."""
    chunks = []
    for batch in images.split(BATCH):
        x = (batch.float() / 127.5 - 1).to(network.device)
        views = torch.stack([x, x.flip(3)] if mirrored else [x], 1)
        codes = scaled_latents(network.encode(views.flatten(0, 1)).latent_dist.mode(), network.config)
        chunks.append(codes.unflatten(0, views.shape[:2]).half().cpu())
    return torch.cat(chunks)
