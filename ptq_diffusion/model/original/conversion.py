"""Conversion of an original latent-diffusion checkpoint into a folder that diffusers and this package load."""

import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, ModelMixin, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file
from torch import Tensor

from ptq_diffusion.artefact.files import write_json
from ptq_diffusion.model.components import CONFIG
from ptq_diffusion.model.family.unet_2d import HEADS
from ptq_diffusion.model.original.first_stage import first_stage_class, first_stage_config, first_stage_tensors
from ptq_diffusion.model.original.settings import Settings, read_settings
from ptq_diffusion.model.original.unet import require_heads, unet_config, unet_tensors
from ptq_diffusion.model.pipeline_index import PIPELINE

NETWORK, FIRST_STAGE, EMBEDDING = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.embedding.weight"
UNET = "unet"
"""The folder of the network."""


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Args:
        folder: what was written.
        parameters: of the network.
        remark: what a user has to know of it; empty where there is nothing.
    """

    folder: Path
    parameters: int
    remark: str


def convert(checkpoint: Path, configuration: Path, folder: Path) -> Conversion:
    """Write the network, the first stage, the class embedding and the scheduler of a checkpoint as a diffusers folder.

    Args:
        checkpoint: the original file, of which nothing but tensors and plain values is read.
        configuration: its YAML, or the same as JSON.
        folder: receives the files; it must not exist yet, or be empty.

    Raises:
        FileNotFoundError: there is no such checkpoint or configuration.
        FileExistsError: the folder has files.
        ValueError: the checkpoint is broken, or is not what the configuration describes; the message names the first
            tensor that differs.
    """
    settings = read_settings(configuration)
    state = read_checkpoint(checkpoint)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"expected a new or empty folder, got {folder} with files; name another with --out")
    network = _network(_part(state, NETWORK, checkpoint), settings)
    first_stage = _first_stage(state, settings, checkpoint)
    embedding = None if settings.classes is None else _embedding(state, settings.classes, checkpoint)
    final = folder.resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all, so that what fails on the way leaves nothing that a second call would take for another's.
    with tempfile.TemporaryDirectory(dir=final.parent, ignore_cleanup_errors=True) as beside:
        written = Path(beside) / "pipeline"
        _write(written, settings, network, first_stage, embedding)
        os.replace(written, final)
    return Conversion(folder, sum(parameter.numel() for parameter in network.parameters()), _remark(folder, settings))


def _write(
    folder: Path, settings: Settings, network: ModelMixin, first_stage: ModelMixin, embedding: Tensor | None
) -> None:
    """Write the folder of a pipeline."""
    network.save_pretrained(folder / UNET)
    _declare_heads(folder / UNET / CONFIG, settings)
    conditional = embedding is not None
    # StableDiffusionPipeline, which class-conditional folders are for, calls every first stage vae.
    name = "vae" if conditional or settings.first_stage == "kl" else "vqvae"
    first_stage.save_pretrained(folder / name)
    _scheduler(settings).save_pretrained(folder / "scheduler")
    if embedding is not None:
        _save_embedding(embedding, folder / "class_embedder")
    write_json(folder / PIPELINE, _pipeline_index(network, first_stage, name, conditional))


def read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint by their original names, in float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or an object that only running its code could make.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint at {path}, found no file; check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["state_dict"] if "state_dict" in content else content
        return {name: tensor.float() for name, tensor in state.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"expected a checkpoint of tensors in {path}, got another or a broken file, or one with objects that only "
            f"code could make, which is not run ({' '.join(str(error).split())[:200]})"
        ) from error


def _part(state: Mapping[str, Tensor], prefix: str, checkpoint: Path) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not part:
        raise ValueError(
            f"expected tensors named {prefix}* in {checkpoint}, got none among {len(state)}, the first "
            f"{next(iter(state), 'missing')}; give a checkpoint of the original latent-diffusion code"
        )
    return part


def _network(state: Mapping[str, Tensor], settings: Settings) -> ModelMixin:
    require_heads(settings.unet)
    config = unet_config(settings.unet)
    kind = UNet2DConditionModel if settings.unet.use_spatial_transformer else UNet2DModel
    network = kind(**{name: value for name, value in config.items() if name != HEADS})
    _load(network, unet_tensors(state, settings.unet), "network")
    return network


def _first_stage(state: Mapping[str, Tensor], settings: Settings, checkpoint: Path) -> ModelMixin:
    part = {
        name: tensor for name, tensor in _part(state, FIRST_STAGE, checkpoint).items() if not name.startswith("loss.")
    }
    scale = float(state["scale_factor"]) if "scale_factor" in state else settings.scale_factor or 1.0
    try:
        config = first_stage_config(part, settings.first_stage, scale)
        network = first_stage_class(settings.first_stage)(**config)
        tensors = first_stage_tensors(part, config)
    except KeyError as error:
        raise ValueError(
            f"expected a {settings.first_stage} first stage in {checkpoint}, got one without {error}; give the "
            "configuration that belongs to the checkpoint"
        ) from error
    _load(network, tensors, "first stage")
    return network


def _load(network: ModelMixin, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give a network its tensors, all of them and no other."""
    expected = network.state_dict()
    for name in [*expected, *(tensors.keys() - expected.keys())]:
        wanted, present = (tuple(part[name].shape) if name in part else None for part in (expected, tensors))
        if wanted != present:
            raise ValueError(
                f"expected a {what} as the configuration describes it, with {name} of shape {wanted}, got {present} in "
                "the checkpoint; give the configuration that belongs to it"
            )
    network.load_state_dict(dict(tensors))


def _scheduler(settings: Settings) -> DDIMScheduler:
    # The original DDIM visits times 1, 1 + T/S, ...: one later than those that divide T.
    return DDIMScheduler(
        num_train_timesteps=settings.timesteps,
        beta_start=settings.linear_start,
        beta_end=settings.linear_end,
        beta_schedule="scaled_linear",
        prediction_type=settings.prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _embedding(state: Mapping[str, Tensor], classes: int, checkpoint: Path) -> Tensor:
    """The embeddings of all classes, (classes, dim)."""
    if EMBEDDING not in state or len(state[EMBEDDING]) != classes:
        rows = len(state[EMBEDDING]) if EMBEDDING in state else None
        raise ValueError(
            f"expected {EMBEDDING} of {classes} rows in {checkpoint}, got {rows}; set n_classes to its rows"
        )
    return state[EMBEDDING].contiguous()


def _save_embedding(weight: Tensor, folder: Path) -> None:
    folder.mkdir()
    described = {"_class_name": "ClassEmbedder", "classes": len(weight) - 1, "dim": weight.shape[1]}
    write_json(folder / CONFIG, described)
    save_file({"weight": weight}, folder / "diffusion_pytorch_model.safetensors")


def _pipeline_index(network: ModelMixin, first_stage: ModelMixin, name: str, conditional: bool) -> dict[str, Any]:
    """The model_index.json of the stock pipeline of such networks."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline" if conditional else "LDMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", type(network).__name__],
        name: ["diffusers", type(first_stage).__name__],
    }
    absent = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    return index | dict.fromkeys(absent, [None, None]) | {"requires_safety_checker": False} if conditional else index


def _declare_heads(path: Path, settings: Settings) -> None:
    """Write into a network's config.json the number of heads that diffusers cannot say, if there is one."""
    config = unet_config(settings.unet)
    if HEADS in config:
        write_json(path, json.loads(path.read_text()) | {HEADS: config[HEADS]})


def _remark(folder: Path, settings: Settings) -> str:
    """A remark on such heads, for those who load the folder."""
    heads = unet_config(settings.unet).get(HEADS)
    if heads is None:
        return ""
    return (
        f"its attention has {heads} heads at every level, which no option of UNet2DModel says; this package "
        f"reads {HEADS} in {folder / UNET / CONFIG}, stock diffusers does not and would compute another function"
    )
