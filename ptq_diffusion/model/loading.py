"""Reading model folders: what a diffusers pipeline saved."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from ptq_diffusion.artefact.bundle import Bundles
from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.model.family import FAMILIES, Family

MODELS = Bundles(Path(__file__).parent)
"""The models that come with the package."""


INDEX = "diffusion_pytorch_model.safetensors.index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Files of weights that diffusers looks for: where the first is, it alone says which others are read."""
LATENT = ("vae", "vqvae", "movq")
"""Folders of decoders beside a network, by which a pipeline is known to be a latent one."""


def load_folder(path: str) -> tuple[ModelMixin, Family, dict[str, Any]]:
    """The network of a model folder with its weights, its family, and its scheduler's configuration.

    Args:
        path: the folder, or `bundled:NAME`.

    Raises:
        FileNotFoundError: the folder lacks one of its files.
        ValueError: the pipeline is a latent one, the network is of no known family, or files are broken or do not
            belong together.
    """
    folder = MODELS.path(path)
    _require_files(folder)
    if decoders := [name for name in LATENT if (folder / name).is_dir()]:
        raise ValueError(
            f"expected a pipeline of images, got a latent one: {folder} has a decoder in {', '.join(decoders)}, which "
            "is not supported yet; give the folder of a pipeline without one"
        )
    name = _read_json(folder / "unet" / "config.json").get("_class_name")
    family = FAMILIES.get(str(name))
    if family is None:
        raise ValueError(
            f"expected a network of {', '.join(FAMILIES)} in {folder / 'unet'}, got {name}; other networks are not "
            "supported"
        )
    network = _load(folder, family.network_class)
    return network, family, _read_json(folder / "scheduler" / "scheduler_config.json")


def folder_checksum(path: str) -> str:
    """Sixteen hex digits over all files of a model folder, or of `bundled:NAME`, that say what its weights are."""
    folder = MODELS.path(path)
    _require_files(folder)
    return files_digest(_files(folder))


def _files(folder: Path) -> list[Path]:
    """The files that are read: both configurations, an index of shards where there is one, and the weights."""
    unet = folder / "unet"
    index = unet / INDEX
    shards = [index, *(unet / name for name in _shards(index))] if index.is_file() else [unet / WEIGHTS]
    return [unet / "config.json", folder / "scheduler" / "scheduler_config.json", *shards]


def _shards(index: Path) -> list[str]:
    """The names of the files that an index of shards leads to."""
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"expected a weight_map in {index}, got none; save the pipeline again")
    return sorted(set(map(str, shards.values())))


def _require_files(folder: Path) -> None:
    missing = [str(file.relative_to(folder)) for file in _files(folder) if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"expected a folder that a diffusers pipeline saved, {folder} lacks {', '.join(missing)}; "
            "save one with pipeline.save_pretrained(folder, safe_serialization=True)"
        )


def _load(folder: Path, network_class: type[ModelMixin]) -> ModelMixin:
    """The network, with all of its weights from the folder."""
    try:
        unet, found = network_class.from_pretrained(
            folder,
            subfolder="unet",
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    # Whatever diffusers trips over is in the two files, and it raises nearly every type of error.
    except Exception as error:
        raise ValueError(
            f"expected a network and its weights in {folder / 'unet'}, got files that are broken or do not belong "
            f"together ({' '.join(str(error).split())[:300]}); save the pipeline again"
        ) from error
    if odd := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise ValueError(
            f"expected the weights of the network that {folder / 'unet' / 'config.json'} describes, got those of "
            f"another: {odd[0]} and {len(odd) - 1} more have no counterpart; save the pipeline again"
        )
    for name, weight in unet.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"expected finite weights in {folder / 'unet'}, got NaN or infinity in {name}; train it anew"
            )
    return unet


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}, got something else ({error}); save the pipeline again") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(found).__name__}; save the pipeline again")
    return found
