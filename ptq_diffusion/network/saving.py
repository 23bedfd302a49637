"""A quantized network as a folder: json and safetensors, nothing else is read."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from ptq_diffusion import quantizer
from ptq_diffusion.model import Denoiser, DiffusersDenoiser
from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.model.site import Site
from ptq_diffusion.network.quantizers import NetworkQuantizers
from ptq_diffusion.quantizer import Quantizer

SETTINGS, RANGES, MODEL = "quantizers.json", "quantizers.safetensors", "model"
FILES = (SETTINGS, RANGES, f"{MODEL}/unet/config.json", f"{MODEL}/scheduler/scheduler_config.json")
"""What a folder holds beside the network's weights."""


def save_quantized(model: Denoiser, quantizers: NetworkQuantizers, folder: Path) -> None:
    """Write `model/`, which stock diffusers reads as a network with quantized weights, and the quantizers beside it.

    Weights are written as the float numbers that they stand for, which their quantizers leave as they are.

    Args:
        model: around a network that `quantize` made of a UNet2DModel with these quantizers.
        quantizers: frozen.
        folder: an existing one.
    """
    state = model.network.state_dict()
    with torch.device("meta"):
        stock = UNet2DModel.from_config(model.network.config)
    stock.load_state_dict({name: state[name] for name in stock.state_dict()}, assign=True)
    stock.save_pretrained(folder / MODEL / "unet", safe_serialization=True)
    (folder / MODEL / "scheduler").mkdir(exist_ok=True)
    _write(folder / MODEL / "scheduler" / "scheduler_config.json", model.scheduler_config)
    _write(folder / SETTINGS, _settings(quantizers))
    quantizers.save(folder / RANGES)


def load_quantized(folder: Path) -> tuple[DiffusersDenoiser, NetworkQuantizers]:
    """The network before its quantizers, which bring its weights back as they were, and these, frozen.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: the files are broken, do not belong together, or name a quantizer that is none of this package.
    """
    model = DiffusersDenoiser.from_folder(str(folder / MODEL))
    quantizers = _blank(model.sites(), folder / SETTINGS)
    quantizers.restore(folder / RANGES)
    return model, quantizers


def _settings(quantizers: NetworkQuantizers) -> dict[str, Any]:
    """Bits of every layer, and what the quantizers of weights and of activations are; None where all is float."""
    found: dict[str, Any] = {"weight": None, "activation": None}
    for layer in quantizers.layers.values():
        for operand, own in (("weight", layer.weight), ("activation", layer.activation)):
            if own is not None:
                found[operand] = {"kind": type(own).__name__, **own.settings}
    bits = {name: [quantizers.plan[name].weight, quantizers.plan[name].activation] for name in quantizers.layers}
    return {"bits": bits, **found}


def _blank(sites: Sequence[Site], file: Path) -> NetworkQuantizers:
    """Quantizers that can adopt what was saved."""
    try:
        found = json.loads(file.read_text())
        plan = BitwidthPlan.constant({name: LayerBits(*bits) for name, bits in found["bits"].items()})
        return NetworkQuantizers(sites, plan, _maker(found["weight"]), _maker(found["activation"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"expected quantizers of this network in {file}, got others ({type(error).__name__}: {error}); "
            "export it again"
        ) from error


def _maker(settings: Mapping[str, Any] | None) -> Callable[[int], Quantizer]:
    """From a bitwidth to a blank quantizer; only what the package exports as one is made."""
    if settings is None:
        return _none_recorded
    options = dict(settings)
    name = options.pop("kind")
    kind = getattr(quantizer, name) if name in quantizer.__all__ else None
    if not isinstance(kind, type) or not issubclass(kind, Quantizer) or inspect.isabstract(kind):
        raise ValueError(f"expected a kind of quantizer of ptq_diffusion.quantizer, got {name!r}")
    return partial(kind.blank, **options)


def _none_recorded(bits: int) -> Quantizer:
    raise ValueError(f"expected {bits} bits to have a quantizer, got none")


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(dict(value), indent=2) + "\n")
