"""Reading model folders: a network of diffusers with its weights and its scheduler's configuration."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin

from ptq_diffusion.model.configuration import require_configuration
from ptq_diffusion.model.family import FAMILIES, Family
from ptq_diffusion.model.folder import MODELS, ModelFiles, find_files, read_json
from ptq_diffusion.model.weights import fitted_weights, read_weights

__all__ = ["MODELS", "folder_checksum", "load_folder"]


def load_folder(path: str) -> tuple[ModelMixin, Family, dict[str, Any]]:
    """The network of a model folder with its weights in float32, its family, and its scheduler's configuration.

    Args:
        path: the folder, or `bundled:NAME`.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of its files.
        ValueError: the pipeline is a latent one, the network is of no known family or quantized already, or files are
            broken or do not belong together.
    """
    files = find_files(path)
    config = read_json(files.network)
    family = FAMILIES.get(str(config.get("_class_name")))
    if family is None:
        raise ValueError(
            f"expected a network of {', '.join(FAMILIES)} in {files.network.parent}, got {config.get('_class_name')}; "
            "other networks are not supported"
        )
    require_configuration(config, family.network_class, files.network)
    # Shapes are compared before memory is taken, which a broken configuration may ask for without bounds.
    expected = _construct(config, family, files, "meta").state_dict()
    weights = fitted_weights(read_weights(files), expected, files)
    network = _construct(config, family, files, "cpu")
    network.load_state_dict(weights)
    return network, family, read_json(files.scheduler)


def folder_checksum(path: str) -> str:
    """Sixteen hex digits over the weights and configurations of a model folder, or of `bundled:NAME`."""
    return find_files(path).checksum()


def _construct(config: Mapping[str, Any], family: Family, files: ModelFiles, device: str) -> ModelMixin:
    """A network of the configuration, its weights not those of the folder."""
    try:
        with torch.device(device):
            return family.network_class.from_config(config)
    # diffusers raises nearly every type of error at options that do not fit each other.
    except Exception as error:
        raise ValueError(
            f"expected the configuration of a network in {files.network}, got options that are broken or do not belong "
            f"together ({' '.join(str(error).split())[:300]}); save the pipeline again"
        ) from error
