"""Model folders: the files of one that are read, and the reason where there is none to read."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderDC, AutoencoderKL, ModelMixin, VQModel

from ptq_diffusion.artefact.digest import files_digest
from ptq_diffusion.model.components import (
    CONFIG,
    Component,
    find_component,
    find_configuration,
    read_json,
    unread_weights,
)
from ptq_diffusion.model.hub import local_folder
from ptq_diffusion.model.pipeline_index import (
    CLASS_EMBEDDER,
    DECODERS,
    NETWORKS,
    PIPELINE,
    SCHEDULER,
    PipelineIndex,
)

SCHEDULER_CONFIG = "scheduler_config.json"
EMA = "_ema"
"""The ending of the folder of a network's averaged weights in a checkpoint of a training."""
Find = Callable[[Path], Component | list[Path]]
"""From the folder of a component to its files, or to those that are missing there."""
AUTOENCODERS: Mapping[str, type[ModelMixin]] = {kind.__name__: kind for kind in (AutoencoderKL, VQModel, AutoencoderDC)}
"""The classes of decoders that are supported, by name."""
SAVE = "save one with pipeline.save_pretrained(folder, safe_serialization=True)"


@dataclass(frozen=True)
class ModelFiles:
    """Files that are read of a model folder, but for those of its text encoders.

    Args:
        index: the components of the folder.
        network: the network that denoises.
        scheduler: the configuration of the scheduler.
        decoder: the autoencoder of a latent model, or None.
        class_embedder: the embeddings that labels stand for, or None.
    """

    index: PipelineIndex
    network: Component
    scheduler: Path
    decoder: Component | None
    class_embedder: Component | None

    def checksum(self, decoder: bool = True) -> str:
        """Sixteen hex digits over the names and the contents of all that is read; a process reads each file once.

        Args:
            decoder: whether the decoder's files count, which only images depend on.
        """
        network, weights = self.network, [file for file in self.network.files if file != self.network.config]
        first = [self.index.file] if self.index.file else []
        parts = (self.decoder if decoder else None, self.class_embedder)
        others = [file for part in parts if part for file in part.files]
        return named_digest([*first, network.config, self.scheduler, *weights, *others], self.index.folder)


def named_digest(files: list[Path], folder: Path) -> str:
    """Sixteen hex digits over the names in a folder and the contents of some files."""
    names = "\n".join(Path(os.path.relpath(file, folder)).as_posix() for file in files)
    return hashlib.sha256(f"{files_digest(files)}\n{names}".encode()).hexdigest()[:16]


def find_files(path: str) -> ModelFiles:
    """The files of a model folder.

    The network is in `unet/` or `transformer/`, or with its scheduler at the top, as in the google/ddpm repositories.
    Of a checkpoint of a training, which has no model_index.json, the averaged weights in `unet_ema/` are read where it
    has some, as the training's own samples are made with them, and the scheduler is that of the folder around it.

    Args:
        path: see `local_folder`.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of its files.
        ValueError: it is another kind of folder, it has components that are not supported, or it is not clear which
            weights are meant.
    """
    return _files(path, find_component)


def find_configurations(path: str) -> ModelFiles:
    """The files of a model folder without its weights, which need not be there; see `find_files`.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks a configuration.
        ValueError: it is another kind of folder, or it has components that are not supported.
    """
    return _files(path, find_configuration)


def _files(path: str, find: Find) -> ModelFiles:
    folder = local_folder(path)
    index = PipelineIndex.of(folder)
    home, beside = _homes(index)
    network, scheduler = find(home), beside / SCHEDULER_CONFIG
    missing = [file for file in (scheduler,) if not file.is_file()]
    if not isinstance(network, Component) or missing:
        lacking = network if isinstance(network, list) else []
        # In the order in which they would be read, what is there instead of weights beside them.
        files = sorted([*lacking, *missing], key=lambda file: file.suffix == ".safetensors")
        names = [_relative(file, folder) + (unread_weights(home) if file.suffix != ".json" else "") for file in files]
        raise FileNotFoundError(
            f"expected a folder that a diffusers pipeline saved, {folder} lacks {', '.join(names)}; "
            f"{_remedy(folder, index, home)}"
        )
    decoder = _part(folder, index.one_of(DECODERS), find)
    if decoder is not None:
        _require_autoencoder(decoder)
    embedder = CLASS_EMBEDDER if CLASS_EMBEDDER in index.components else None
    return ModelFiles(index, network, scheduler, decoder, _part(folder, embedder, find))


def _homes(index: PipelineIndex) -> tuple[Path, Path]:
    """The folders of the network and of the scheduler's configuration."""
    folder, name = index.folder, index.one_of(NETWORKS)
    if not any((folder / network).is_dir() for network in NETWORKS) and (folder / CONFIG).is_file():
        return folder, folder
    home, scheduler = folder / (name or NETWORKS[0]), folder / SCHEDULER
    averaged = [folder / f"{network}{EMA}" for network in NETWORKS if name in (None, network)]
    present = [place for place in averaged if place.is_dir()]
    if index.file is None and present:
        around = folder.resolve().parent / SCHEDULER
        return present[0], around if around.is_dir() and not scheduler.is_dir() else scheduler
    return home, scheduler


def _part(folder: Path, name: str | None, find: Find) -> Component | None:
    """The component of a name; None where there is no name.

    Raises:
        FileNotFoundError: it lacks files.
    """
    if name is None:
        return None
    component = find(folder / name)
    if isinstance(component, list):
        names = ", ".join(_relative(file, folder) for file in component)
        raise FileNotFoundError(
            f"expected the {name} of the pipeline in {folder}, it lacks {names}{unread_weights(folder / name)}; {SAVE}"
        )
    return component


def _require_autoencoder(decoder: Component) -> None:
    kind = read_json(decoder.config).get("_class_name")
    if kind not in AUTOENCODERS:
        raise ValueError(
            f"expected a decoder of {', '.join(AUTOENCODERS)} in {decoder.config.parent}, got {kind}, which is not "
            "supported; use a pipeline with another"
        )


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file, folder)).as_posix()


def _remedy(folder: Path, index: PipelineIndex, home: Path) -> str:
    """The way from a folder that lacks files to one that has them."""
    place = folder.resolve()
    parts = (*NETWORKS, *(f"{network}{EMA}" for network in NETWORKS), *DECODERS, SCHEDULER)
    whole = (place.parent / PIPELINE).is_file() or (place.parent / SCHEDULER).is_dir()
    if place.name in parts and whole:
        return f"it is a part of a pipeline, give all of it: {place.parent}"
    if index.file is None and home.name.endswith(EMA):
        return f"it is a training's checkpoint, save a scheduler: scheduler.save_pretrained('{folder}/scheduler')"
    return SAVE
