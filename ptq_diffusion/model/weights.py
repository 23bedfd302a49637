"""Weights of model folders, in one dtype under the names of a network."""

import warnings
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.model.components import Component, shard_names

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes that a network can be computed in, by name."""
COMPILED, PARALLEL = "_orig_mod.", "module."
"""Parts of names that torch.compile leaves anywhere and DataParallel in front of all."""
ADAPTER = ("lora_", ".base_layer.")
"""Parts of names that an adapter leaves which is loaded beside the weights."""
FUSE = "it has an adapter: pipe.fuse_lora(); pipe.unload_lora_weights(), then save the pipeline again"
EARLIER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an attention's layers in early versions of diffusers, as in the google/ddpm repositories."""


def read_weights(files: Component) -> dict[str, Tensor]:
    """All tensors of a component by the names of the file, without what compiling left in them.

    Raises:
        ValueError: a file is broken, or shards hold other tensors than their index says.
    """
    weights: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    for file in files.weights:
        try:
            tensors = load_file(file)
        # safetensors answers an unknown type of numbers with a KeyError.
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(
                f"expected weights in {file}, got a file that is broken ({' '.join(str(error).split())[:300]}); fetch "
                "it again or save the pipeline again"
            ) from error
        weights |= tensors
        places |= dict.fromkeys(tensors, file.name)
    if files.index is not None and places != shard_names(files.index):
        raise ValueError(
            f"expected shards of the tensors that {files.index} lists, got others; save the pipeline again"
        )
    return _without_prefixes(weights, files)


def known_dtype(name: str) -> torch.dtype:
    """The dtype of a name.

    Raises:
        ValueError: networks are not computed in it.
    """
    if name not in DTYPES:
        raise ValueError(f"expected model.dtype to be one of {', '.join(DTYPES)}, got {name!r}; set one of them")
    return DTYPES[name]


def fitted_weights(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], files: Component, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The weights under the names of a network: float ones in one dtype, others as they are.

    Args:
        weights: by the names of the file.
        expected: the network's own by name; their numbers are not looked at, so they may be on the meta device.
        files: for messages.
        dtype: of the float ones.

    Raises:
        ValueError: weights are missing, too many, of another shape, of another type of numbers, or not finite.
    """
    weights = {_current(name, expected): weight for name, weight in weights.items()}
    if odd := [*(expected.keys() - weights.keys()), *(weights.keys() - expected.keys())]:
        adapted = any(mark in name for name in odd for mark in ADAPTER)
        remedy = FUSE if adapted else "save the pipeline again"
        raise ValueError(
            f"expected the weights of the network that {files.config} describes, got those of another: "
            f"{min(odd)} and {len(odd) - 1} more have no counterpart; {remedy}"
        )
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            raise ValueError(
                f"expected the weights of the network that {files.config} describes, got files that do not belong "
                f"together: {name} is {tuple(weight.shape)} in the weights and {tuple(expected[name].shape)} in the "
                "network; save the pipeline again"
            )
        _require_numbers(name, weight, expected[name], files)
    kinds = sorted({_kind(weight.dtype) for name, weight in weights.items() if expected[name].is_floating_point()})
    if len(kinds) > 1:
        _warn(f"the weights in {files.config.parent} are of {' and '.join(kinds)}; all become {_kind(dtype)}")
    floats = {name for name in weights if expected[name].is_floating_point()}
    return {name: weight.to(dtype) if name in floats else weight for name, weight in weights.items()}


def _without_prefixes(weights: dict[str, Tensor], files: Component) -> dict[str, Tensor]:
    """The tensors by the names that the network had before it was compiled or wrapped."""
    names = {name: name.replace(COMPILED, "") for name in weights}
    if all(name.startswith(PARALLEL) for name in names.values()):
        names = {name: short.removeprefix(PARALLEL) for name, short in names.items()}
    if list(names) == list(names.values()):
        return weights
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"expected every weight once in {files.config.parent}, got some both with and without {COMPILED} in their "
            "names; save the network itself, without what compiling put around it"
        )
    first = next(name for name, short in names.items() if name != short)
    _warn(
        f"the weights in {files.config.parent} are of a compiled or wrapped network; {first} is read as {names[first]}"
    )
    return {names[name]: weight for name, weight in weights.items()}


def _current(name: str, expected: Mapping[str, Tensor]) -> str:
    """The name that a weight has today, where the network has one of it."""
    path, _, parameter = name.rpartition(".")
    parent, _, layer = path.rpartition(".")
    renamed = f"{parent}.{EARLIER.get(layer, layer)}.{parameter}"
    return renamed if name not in expected and renamed in expected else name


def _require_numbers(name: str, weight: Tensor, expected: Tensor, files: Component) -> None:
    allowed = FLOATS if expected.is_floating_point() else (expected.dtype,)
    if weight.dtype not in allowed:
        raise ValueError(
            f"expected {name} as {', '.join(str(kind).removeprefix('torch.') for kind in allowed)} in "
            f"{files.config.parent}, got {_kind(weight.dtype)}; give the folder of the float network"
        )
    if not torch.isfinite(weight.float()).all():
        raise ValueError(
            f"expected finite weights in {files.config.parent}, got NaN or infinity in {name}; train it anew"
        )


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=2)
