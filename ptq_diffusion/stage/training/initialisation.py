"""The beginning of a training: the weights of a saved model in place of random ones."""

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, ModelMixin
from omegaconf import DictConfig
from torch import Tensor, nn

from ptq_diffusion.model.components import Component, read_json
from ptq_diffusion.model.folder import find_files
from ptq_diffusion.model.loading import (
    LoadedFolder,
    component_outline,
    folder_checksum,
    load_component,
    load_folder,
    network_config,
    require_latents,
)


def initial_checksum(training: DictConfig) -> dict[str, str]:
    """The checksum of the model folder that a training begins from, by name; nothing of one that begins from none."""
    path = training.init_from.path
    return {} if path is None else {"init_from": folder_checksum(path)}


def take_weights(network: ModelMixin, path: str) -> LoadedFolder:
    """Give a network the weights of the one in a model folder, see `load_folder`; the folder's contents.

    Raises:
        ValueError: the folder's network is of another class or of other sizes.
    """
    folder = load_folder(path)
    weights = folder.network.state_dict()
    _require_same(weights, network.state_dict(), path)
    network.load_state_dict(weights)
    return folder


def require_weights(network: nn.Module, path: str) -> None:
    """Refuse a model folder whose weights a network cannot take, by the folder's configurations alone.

    Args:
        network: may be on the meta device.
        path: see `load_folder`.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of its files.
        ValueError: see `take_weights`.
    """
    files = find_files(path)
    require_latents(files)
    config, family = network_config(files)
    outline = component_outline(files.network, config, family.network_class, family)
    _require_same(outline.state_dict(), network.state_dict(), path)


def find_autoencoder(path: str) -> tuple[Component, dict[str, Any]]:
    """The autoencoder of a model folder and its configuration.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of its files.
        ValueError: the folder has no `AutoencoderKL`.
    """
    decoder = find_files(path).decoder
    config = {} if decoder is None else read_json(decoder.config)
    if decoder is None or config.get("_class_name") != AutoencoderKL.__name__:
        raise ValueError(
            f"expected a model of latents of an AutoencoderKL in {path}, got {config.get('_class_name', 'no decoder')}"
            "; give another training.init_from.path"
        )
    return decoder, config


def saved_autoencoder(path: str) -> AutoencoderKL:
    """The autoencoder of a model folder with its weights in float32; raises what `find_autoencoder` does."""
    component, config = find_autoencoder(path)
    return load_component(component, config, AutoencoderKL)


def _require_same(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str) -> None:
    """Refuse weights of other names or shapes than a network's own; their numbers are not looked at."""
    shapes, own_shapes = ({(name, weight.shape) for name, weight in each.items()} for each in (saved, own))
    if odd := sorted({name for name, _ in shapes ^ own_shapes}):
        more = len(odd) - 1
        others = "differs" if not more else f"and {more} more weight{'s' if more > 1 else ''} differ"
        raise ValueError(
            f"expected the network that training.network configures in {path}, got another: {odd[0]} {others} in name "
            "or shape; give another training.init_from.path or change training.network"
        )
