"""The description of the float denoiser of a saved network, and the denoiser that it is rebuilt to, without weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq_diffusion.model import Denoiser, DiffusersDenoiser
from ptq_diffusion.model.diffusers_denoiser import Classes
from ptq_diffusion.model.family import FAMILIES
from ptq_diffusion.model.weights import DTYPES, known_dtype

MODEL = "model"
"""The key of the configuration that a denoiser which is not of diffusers is built from."""
Build = Callable[[Mapping[str, Any]], Denoiser]
"""From that configuration to the denoiser: only who knows which code may run can build it."""


def described(denoiser: Denoiser, model: Mapping[str, Any] | None) -> dict[str, Any]:
    """All that a denoiser is made of beside its tensors.

    Args:
        denoiser: without guidance.
        model: see `save_quantized`.

    Raises:
        TypeError: a denoiser that is not of diffusers, and no configuration.
    """
    if model is not None:
        return {MODEL: dict(model)}
    if not isinstance(denoiser, DiffusersDenoiser):
        raise TypeError(f"expected a quantized network of diffusers, got a {type(denoiser).__name__}")
    return {
        "family": denoiser.family.network_class.__name__,
        "network": denoiser.config,
        "scheduler": denoiser.scheduler_config,
        "dtype": next(name for name, dtype in DTYPES.items() if dtype is denoiser.dtype),
        "classes": None if denoiser.folder_classes is None else denoiser.folder_classes.count,
    }


def other_denoiser(description: Mapping[str, Any], folder: Path, build: Build | None) -> Denoiser | None:
    """The denoiser that was described, where it is not of diffusers; None of one that is.

    Args:
        description: of `described`, with anything beside.
        folder: that it was read from, for messages.
        build: see `load_quantized`.

    Raises:
        ValueError: nothing builds what is described; what a constructor raises passes through.
    """
    if not isinstance(description.get(MODEL), dict):
        return None
    if build is None:
        raise ValueError(
            f"expected a quantized network of diffusers in {folder}, got one of {description[MODEL].get('_target_')}; "
            "load it with pd.load_quantized(folder, plugins=[PACKAGE])"
        )
    return build(description[MODEL])


def diffusers_denoiser(description: Mapping[str, Any], class_table: Tensor | None) -> Denoiser:
    """The denoiser that was described, on the meta device.

    Args:
        description: of `described`, with anything beside.
        class_table: the embeddings that labels stand for, or None.

    Raises:
        TypeError: a part of the description is of another type.
        KeyError: it lacks a part.
    """
    if odd := [name for name in ("network", "scheduler") if not isinstance(description[name], dict)]:
        # diffusers would take a text for a folder to read.
        raise TypeError(f"expected the configuration of a {odd[0]}, got {type(description[odd[0]]).__name__}")
    family = FAMILIES[description["family"]]
    with torch.device("meta"):
        network = family.build(description["network"])
    classes = None if description["classes"] is None else Classes(description["classes"], class_table)
    parts = description["network"], description["scheduler"], classes, known_dtype(description["dtype"])
    return DiffusersDenoiser(network, family, *parts)
