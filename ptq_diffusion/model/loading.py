"""Reading model folders: a network of diffusers with its weights and its scheduler's configuration."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin, Transformer2DModel
from torch import Tensor, nn

from ptq_diffusion.model.class_embedder import load_class_table
from ptq_diffusion.model.components import Component, read_json
from ptq_diffusion.model.configuration import require_configuration
from ptq_diffusion.model.family import FAMILIES, Family
from ptq_diffusion.model.folder import ModelFiles, find_files
from ptq_diffusion.model.hub import MODELS
from ptq_diffusion.model.weights import fitted_weights, read_weights

__all__ = ["MODELS", "LoadedFolder", "folder_checksum", "load_component", "load_folder", "require_latents"]

LEGACY, LEGACY_KINDS = (
    "Transformer2DModel",
    {"ada_norm_zero": "DiTTransformer2DModel"} | {"ada_norm_single": "PixArtTransformer2DModel"},
)
"""The class that early folders name, as facebook/DiT-XL-2-256 does, and the classes that it is today by `norm_type`."""
AVERAGING = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
"""Entries that a training leaves in the configuration of averaged weights."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedFolder:
    """The contents of a model folder that denoise.

    Args:
        network: with its weights, in the dtype that was asked for.
        family: of the network.
        scheduler_config: the scheduler's configuration.
        classes: how many classes the folder names, or None.
        class_table: the embeddings that labels stand for, see `load_class_table`, or None.
    """

    network: ModelMixin
    family: Family
    scheduler_config: dict[str, Any]
    classes: int | None
    class_table: Tensor | None


def load_folder(path: str, dtype: torch.dtype = torch.float32, mapped: bool = False) -> LoadedFolder:
    """The network of a model folder, its scheduler's configuration and its classes.

    Args:
        path: the folder, `bundled:NAME`, or `org/name` in the hub's local cache.
        dtype: of the weights.
        mapped: see `load_component`.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks one of its files.
        ValueError: the pipeline or the network is of no known kind or quantized already, or files are broken or do not
            belong together.
    """
    files = find_files(path)
    require_latents(files)
    config, family = network_config(files)
    network = load_component(files.network, config, family.network_class, family, dtype, mapped)
    if files.index.unused:
        log.info("not used of %s: %s", files.index.folder, ", ".join(files.index.unused))
    table = None if files.class_embedder is None else load_class_table(files.class_embedder)
    return LoadedFolder(network, family, scheduler_config(files), files.index.classes, table)


def folder_checksum(path: str) -> str:
    """Sixteen hex digits over the weights and configurations that are read of a model folder, see `find_files`.

    Text encoders have a checksum of their own.
    """
    return find_files(path).checksum()


def network_checksum(path: str) -> str:
    """Sixteen hex digits over all that states depend on: what `folder_checksum` covers, but for the decoder."""
    return find_files(path).checksum(decoder=False)


def network_config(files: ModelFiles) -> tuple[dict[str, Any], Family]:
    """The configuration of the network of a model folder, in today's words, and its family.

    Raises:
        ValueError: the network is of no known family.
    """
    config = {name: value for name, value in read_json(files.network.config).items() if name not in AVERAGING}
    name = str(config.get("_class_name"))
    if name == LEGACY and (today := LEGACY_KINDS.get(str(config.get("norm_type")))):
        options = signature(FAMILIES[today].network_class.__init__).parameters
        dropped = set(signature(Transformer2DModel.__init__).parameters) - set(options)
        config = {option: value for option, value in config.items() if option not in dropped}
        name = config["_class_name"] = today
    family = FAMILIES.get(name)
    if family is None:
        raise ValueError(
            f"expected a network of {', '.join(FAMILIES)} in {files.network.config.parent}, got {name}; other networks "
            "are not supported"
        )
    return config, family


def require_latents(files: ModelFiles) -> None:
    """Refuse a decoder of other latents than the network denoises.

    Raises:
        ValueError: see there, or the network cannot be asked.
    """
    if files.decoder is None:
        return
    channels = state_shape(files)[0]
    decoder = read_json(files.decoder.config)
    latents = decoder.get("vq_embed_dim") or decoder.get("latent_channels")
    if latents is not None and latents != channels:
        raise ValueError(
            f"expected a decoder of the {channels} channels that the network in {files.network.config.parent} "
            f"denoises, got one of {latents} in {files.decoder.config.parent}; save the pipeline again"
        )


def state_shape(files: ModelFiles) -> tuple[int, int, int]:
    """The shape (C, H, W) of one state of the network of a model folder, from its configuration alone.

    Raises:
        ValueError: the network is of no known family or cannot be asked.
    """
    config, family = network_config(files)
    require_configuration(config, family.network_class, files.network.config, family.options_beside)
    return family.shape(complete_config(config, family.network_class))


def complete_config(config: Mapping[str, Any], network_class: type[ModelMixin]) -> dict[str, Any]:
    """A configuration with the defaults of its class where it says nothing."""
    parameters = signature(network_class.__init__).parameters.items()
    return {name: parameter.default for name, parameter in parameters if name != "self"} | dict(config)


def load_component(
    component: Component,
    config: Mapping[str, Any],
    network_class: type[ModelMixin],
    family: Family | None = None,
    dtype: torch.dtype = torch.float32,
    mapped: bool = False,
) -> ModelMixin:
    """The network of a component with its weights.

    Args:
        component: its files.
        config: its configuration, in today's words.
        network_class: the class that the configuration names.
        family: of a network that denoises; None of a decoder.
        dtype: of the weights.
        mapped: whether weights that have this dtype already stay in their files, of which the system reads pages when
            they are used and drops them when memory is short; the files must not be written into meanwhile.

    Raises:
        ValueError: the network is quantized already, or files are broken or do not belong together.
    """
    require_configuration(config, network_class, component.config, family.options_beside if family else None)
    build = family.build if family else network_class.from_config
    # Shapes are compared before memory is taken, which a broken configuration may ask for without bounds.
    expected = _construct(config, build, component, "meta").state_dict()
    weights = fitted_weights(read_weights(component), expected, component, dtype)
    with init_empty_weights() if mapped else nullcontext():
        network = _construct(config, build, component, "cpu")
    if mapped:
        network.load_state_dict(weights, assign=True)
    # Not diffusers' own `to`, which warns of modules that stay in float32; no network of a family has any. Weights that
    # are mapped have the dtype already; buffers that no file holds have it not.
    nn.Module.to(network, dtype)
    if not mapped:
        network.load_state_dict(weights)
    return network


def component_outline(
    component: Component, config: Mapping[str, Any], network_class: type[ModelMixin], family: Family | None = None
) -> ModelMixin:
    """The network of a component on the meta device: its layers and their shapes, without weights or memory.

    Args:
        component: its files, of which weights need not be there.
        config: its configuration, in today's words.
        network_class: the class that the configuration names.
        family: of a network that denoises; None of a decoder.

    Raises:
        ValueError: the network is quantized already, or its options are broken or do not belong together.
    """
    require_configuration(config, network_class, component.config, family.options_beside if family else None)
    return _construct(config, family.build if family else network_class.from_config, component, "meta")


def scheduler_config(files: ModelFiles) -> dict[str, Any]:
    """The scheduler's configuration, a legacy `predict_epsilon` in today's words: false means that x_0 is predicted.

    Raises:
        ValueError: it says two things.
    """
    config = read_json(files.scheduler)
    predicts_epsilon = config.pop("predict_epsilon", None)
    if predicts_epsilon is None:
        return config
    expected = "epsilon" if predicts_epsilon else "sample"
    if config.setdefault("prediction_type", expected) != expected:
        raise ValueError(
            f"expected one kind of prediction in {files.scheduler}, got predict_epsilon={predicts_epsilon} and "
            f"prediction_type={config['prediction_type']}; remove the one that is wrong"
        )
    return config


def _construct(
    config: Mapping[str, Any], build: Callable[[Mapping[str, Any]], ModelMixin], component: Component, device: str
) -> ModelMixin:
    """A network of the configuration, its weights not those of the folder."""
    try:
        with torch.device(device):
            return build(config)
    # diffusers raises nearly every type of error at options that do not fit each other.
    except Exception as error:
        raise ValueError(
            f"expected the configuration of a network in {component.config}, got options that are broken or do not "
            f"belong together ({' '.join(str(error).split())[:300]}); save the pipeline again"
        ) from error
