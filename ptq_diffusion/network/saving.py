"""A quantized network as a folder: packed integers, scales and settings by step; json and safetensors only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ptq_diffusion.model import Denoiser, DiffusersDenoiser
from ptq_diffusion.model.family import FAMILIES
from ptq_diffusion.model.plan import BitwidthPlan
from ptq_diffusion.network.integers import QuantizedWeight, StoredWeight, stored_weight
from ptq_diffusion.network.layer import CurrentStep, quantized_layer
from ptq_diffusion.network.quantized import QuantizedDenoiser
from ptq_diffusion.network.step_settings import StepSettings

DESCRIPTION, TENSORS = "quantized.json", "quantized.safetensors"
FILES = (DESCRIPTION, TENSORS)
"""The files of a folder."""
VERSION = 1
"""Of the format."""
SETTINGS, WEIGHT, BIAS, OTHER = "settings", "weight", "bias", "other"
"""First parts of the names of tensors."""


def save_quantized(quantized: QuantizedDenoiser, folder: Path) -> None:
    """Write a quantized network into an existing folder; the float network is not needed to load it.

    Raises:
        TypeError: a denoiser that is not of diffusers.
    """
    denoiser = quantized.denoiser
    if not isinstance(denoiser, DiffusersDenoiser):
        raise TypeError(f"expected a quantized network of diffusers, got a {type(denoiser).__name__}")
    save_file({name: tensor.contiguous() for name, tensor in _tensors(quantized).items()}, folder / TENSORS)
    description = {
        "version": VERSION,
        "family": denoiser.family.network_class.__name__,
        "network": denoiser.config,
        "scheduler": denoiser.scheduler_config,
        "symmetric": {name: layer.settings.symmetric for name, layer in quantized.layers().items()},
        "weights": {name: [_grid_of(weight) for weight in layer.weights] for name, layer in quantized.layers().items()},
        "plan": json.loads(quantized.plan.to_json()),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description) + "\n")


def load_quantized(folder: Path) -> QuantizedDenoiser:
    """The quantized network that `save_quantized` wrote, bit for bit.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: the files are broken, of another version, or do not belong together.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"expected {name} in {folder}, a folder that a quantized network was saved in")
    try:
        description, tensors = json.loads((folder / DESCRIPTION).read_text()), load_file(folder / TENSORS)
        if description["version"] != VERSION:
            raise ValueError(f"version {description['version']} in place of {VERSION}")
        return _rebuilt(description, tensors)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"expected a quantized network of version {VERSION} in {folder}, got other or broken files "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); quantize or export it again"
        ) from error


def _tensors(quantized: QuantizedDenoiser) -> dict[str, Tensor]:
    """Every tensor of the network by name: settings of all layers, their weights and biases, all other parameters."""
    tensors = {f"{SETTINGS}/{name}": tensor for name, tensor in quantized.settings.tensors().items()}
    for name, layer in quantized.layers().items():
        for place, weight in enumerate(layer.weights):
            assert isinstance(weight, StoredWeight)
            tensors |= {f"{WEIGHT}/{name}/{place}/{part}": tensor for part, tensor in weight.tensors().items()}
        if layer.bias is not None:
            tensors[f"{BIAS}/{name}"] = layer.bias
    sites = tuple(f"{name}." for name in quantized.layers())
    others = quantized.network.state_dict().items()
    return tensors | {f"{OTHER}/{name}": tensor for name, tensor in others if not name.startswith(sites)}


def _grid_of(weight: nn.Module) -> list[int | bool]:
    """Bits and symmetry of a stored weight."""
    assert isinstance(weight, StoredWeight)
    return [weight.bits, weight.grid.symmetric if isinstance(weight, QuantizedWeight) else True]


def _rebuilt(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedDenoiser:
    family, plan = FAMILIES[description["family"]], BitwidthPlan.from_json(json.dumps(description["plan"]))
    with torch.device("meta"):
        network = family.network_class.from_config(description["network"]).eval()
    float_model = DiffusersDenoiser(network, family, description["network"], description["scheduler"])
    sites, current = float_model.sites(), CurrentStep()
    plan.require(sites, plan.steps)
    table = StepSettings.of_tensors(_below(SETTINGS, tensors), description["symmetric"])
    for site in sites:
        layer = network.get_submodule(site.name)
        weights = [
            stored_weight(_below(f"{WEIGHT}/{site.name}/{place}", tensors), bits, symmetric, site.weight_shape)
            for place, (bits, symmetric) in enumerate(description["weights"][site.name])
        ]
        bias = tensors[f"{BIAS}/{site.name}"] if layer.bias is not None else None
        parent, _, child = site.name.rpartition(".")
        replacement = quantized_layer(layer, weights, bias, table[site.name], current)
        setattr(network.get_submodule(parent), child, replacement)
    _assign_others(network, _below(OTHER, tensors), tuple(f"{site.name}." for site in sites))
    denoiser: Denoiser = float_model.with_network(network.requires_grad_(False))
    return QuantizedDenoiser(denoiser, sites, float_model.attention_macs(), plan, current)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with prefix/, by the rest of their names."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def _assign_others(network: nn.Module, tensors: Mapping[str, Tensor], sites: tuple[str, ...]) -> None:
    missing, unexpected = network.load_state_dict(dict(tensors), strict=False, assign=True)
    if odd := [*(name for name in missing if not name.startswith(sites)), *unexpected]:
        raise ValueError(f"expected the parameters of the network that is described, {odd[0]} has no counterpart")
